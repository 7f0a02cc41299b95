// Chunks of pictures from the server, shown at the world's own rate; and how long they took from a key.

const HASTE = 0.95; // a chunk is shown a little faster than it lasts, so that it is over when the next one comes
const KEPT = 500;

export async function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  for (const branch of header.branches) {
    const files = branch.sizes.map((size) => {
      const blob = new Blob([new Uint8Array(buffer, start, size)], { type: "image/jpeg" });
      start += size;
      return createImageBitmap(blob);
    });
    branch.frames = await Promise.all(files);
  }
  return header;
}

export class Screen {
  // drawn(header) is called when the first picture of a chunk is on the canvas.
  constructor(figures, hello, drawn) {
    this.figures = figures;
    this.hello = hello;
    this.drawn = drawn;
    this.chunk = null;
    requestAnimationFrame(() => this.tick());
    addEventListener("resize", () => this.fit());
  }

  show(header) {
    const count = Math.max(1, header.branches.length);
    if (this.chunk?.header.branches.length !== count) {
      this.figures.forEach((figure, index) => (figure.hidden = index >= count));
      this.fit();
    }
    this.chunk?.header.branches.forEach((branch) => branch.frames.forEach((picture) => picture.close()));
    this.chunk = { header, began: performance.now(), shown: -1 };
    this.draw();
  }

  // The largest whole multiple of the frame's size that there is room for, 512 pixels at most.
  fit() {
    const [width, height] = this.hello.frame_size;
    const shown = this.figures.filter((figure) => !figure.hidden).length;
    const room = (this.figures[0].parentElement.clientWidth - 14 * (shown - 1)) / shown;
    const most = Math.min(512, room, innerHeight - 190 - document.getElementById("prompt").offsetHeight);
    const times = Math.max(1, Math.floor(most / Math.max(width, height)));
    for (const figure of this.figures) {
      const canvas = figure.querySelector("canvas");
      if (canvas.width !== width) Object.assign(canvas, { width, height });
      Object.assign(canvas.style, { width: `${width * times}px`, height: `${height * times}px` });
    }
  }

  tick() {
    this.draw();
    requestAnimationFrame(() => this.tick());
  }

  draw() {
    if (!this.chunk) return;
    const { header, began, shown } = this.chunk;
    const count = header.branches[0]?.frames.length ?? 0;
    const each = (HASTE * 1000 * this.hello.chunk_seconds) / Math.max(1, count);
    const index = Math.min(count - 1, Math.floor((performance.now() - began) / each));
    if (index === shown) return;
    header.branches.forEach((branch, place) => {
      this.figures[place].querySelector("canvas").getContext("2d").drawImage(branch.frames[index], 0, 0);
    });
    this.chunk.shown = index;
    if (shown < 0) this.drawn(header);
  }
}

// Milliseconds from a press to the first picture that it has had a part in.
export class Latency {
  constructor() {
    this.waiting = [];
    this.milliseconds = [];
  }

  pressed(number, time) {
    this.waiting.push({ number, time });
  }

  forget() {
    this.waiting = [];
  }

  drawn(header) {
    const now = performance.now();
    const done = this.waiting.filter((press) => press.number <= header.input);
    this.waiting = this.waiting.filter((press) => press.number > header.input);
    this.milliseconds.push(...done.map((press) => now - press.time));
    this.milliseconds.splice(0, this.milliseconds.length - KEPT);
  }

  percentile(share) {
    const sorted = [...this.milliseconds].sort((a, b) => a - b);
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  }
}
