// What a visitor does with keys, mouse, gamepad and sliders, as messages of all that is held.

const NAMES = { " ": "space", ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
// Buttons of the standard gamepad, by number, and the key that each stands for: the first that the world knows.
const BUTTONS = { 0: ["space"], 4: ["q"], 5: ["e"], 6: ["f", "s"], 7: ["r", "w"] };
// Axes: the keys of their negative and positive ends.
const AXES = [["a", "d"], ["w", "s"], ["left", "right"], ["up", "down"]];
const DEAD = 0.15;

export function keyName(event) {
  return NAMES[event.key] ?? event.key.toLowerCase();
}

export function isTyping(target) {
  return target instanceof HTMLInputElement && ["text", "number"].includes(target.type);
}

export class Inputs {
  // send(message) sends; pressed(number, time) is told of each press, for the measurement.
  constructor(hello, send, pressed) {
    this.hello = hello;
    this.send = send;
    this.pressed = pressed;
    this.known = new Set(hello.legend.flatMap((row) => row.keys));
    this.number = 0;
    this.down = new Map(); // code of a key -> its name
    this.pad = {};
    this.sliders = {};
    this.mouse = [0, 0];
    this.strength = 1;
    requestAnimationFrame(() => this.poll());
  }

  keyDown(event) {
    const name = keyName(event);
    if (!this.known.has(name)) return false;
    event.preventDefault();
    if (!this.down.has(event.code)) {
      this.down.set(event.code, name);
      this.pressed(this.changed(), event.timeStamp);
    }
    return true;
  }

  keyUp(event) {
    if (this.down.delete(event.code)) this.changed();
  }

  letGo() {
    if (this.down.size) {
      this.down.clear();
      this.changed();
    }
  }

  setSlider(field, value) {
    this.sliders[field] = value;
    this.changed();
  }

  moveMouse(right, down) {
    this.mouse[0] += right;
    this.mouse[1] += down;
  }

  held() {
    const keys = { ...this.pad };
    for (const name of this.down.values()) keys[name] = this.strength;
    return keys;
  }

  // Sends all that is held; the number by which the server tells that it has had its part in a picture.
  changed() {
    this.send({ type: "input", id: ++this.number, keys: this.held(), mouse: this.mouse, sliders: this.sliders });
    this.mouse = [0, 0];
    this.sliders = {};
    return this.number;
  }

  // Once a picture of the screen: the gamepad, and the way that the mouse has gone since.
  poll() {
    const pad = this.readPad();
    if (JSON.stringify(pad) !== JSON.stringify(this.pad)) {
      const more = Object.keys(pad).some((name) => !(name in this.pad));
      this.pad = pad;
      const number = this.changed();
      if (more) this.pressed(number, performance.now());
    } else if (this.mouse[0] || this.mouse[1]) {
      this.changed();
    }
    requestAnimationFrame(() => this.poll());
  }

  readPad() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((entry) => entry?.mapping === "standard");
    const keys = {};
    if (!pad) return keys;
    const add = (names, share) => {
      const name = names.find((entry) => this.known.has(entry));
      if (name && share > DEAD) keys[name] = Math.max(keys[name] ?? 0, Math.round(share * 50) / 50);
    };
    AXES.forEach(([less, more], index) => {
      const value = pad.axes[index] ?? 0;
      add([value < 0 ? less : more], Math.abs(value));
    });
    for (const [index, names] of Object.entries(BUTTONS)) add(names, pad.buttons[index]?.value ?? 0);
    return keys;
  }
}

// The legend of keys, and small caps over the picture; both light up what is held.
export function showLegend(hello, legend, caps) {
  for (const row of hello.legend) {
    const line = document.createElement("div");
    for (const key of row.keys) line.append(cap(key));
    const value = row.toggles ? "" : ` ${Number(row.value.toPrecision(2))} ${row.unit}`;
    line.append(row.word);
    line.title = `${row.field}${value}`;
    legend.append(line);
    caps.append(cap(row.keys[0]));
  }
}

function cap(key) {
  const signs = { up: "↑", down: "↓", left: "←", right: "→", space: "␣" };
  const element = document.createElement("kbd");
  element.textContent = signs[key] ?? key.toUpperCase();
  element.dataset.key = key;
  return element;
}

export function lightKeys(hello, held) {
  const down = new Set(Object.keys(held));
  for (const row of hello.legend) if (row.keys.some((key) => down.has(key))) row.keys.forEach((key) => down.add(key));
  for (const element of document.querySelectorAll("kbd[data-key]")) {
    element.classList.toggle("down", down.has(element.dataset.key));
  }
}

// A slider for each field, with a bar that shows what has acted, in units.
export class Sliders {
  constructor(hello, inputs, parent) {
    const { fields, units, low, high, absolute } = hello.modality;
    this.rows = fields.map((field, index) => {
      const row = document.createElement("div");
      row.className = "slider";
      row.innerHTML = "<span></span><span class='track'><input type='range'><i></i></span><span></span>";
      const [name, track, value] = row.children;
      const [input, bar] = track.children;
      name.textContent = field;
      Object.assign(input, { min: low[index], max: high[index], step: (high[index] - low[index]) / 100, value: 0 });
      input.title = `${low[index]} to ${high[index]} ${units[index]}; double-click for 0`;
      input.disabled = hello.discrete;
      bar.className = ["m", "rad"].includes(units[index]) ? units[index] : "";
      input.addEventListener("input", () => inputs.setSlider(field, Number(input.value)));
      input.addEventListener("change", () => input.blur());
      input.addEventListener("dblclick", () => {
        input.value = Math.max(0, low[index]);
        inputs.setSlider(field, Number(input.value));
      });
      parent.append(row);
      const unit = absolute.includes(field) ? "" : ` ${units[index].replace("^2", "²")}`;
      return { input, bar, value, unit, low: low[index], high: high[index] };
    });
  }

  show(action, settings) {
    this.rows.forEach((row, index) => {
      if (document.activeElement !== row.input) row.input.value = settings[index];
      const acted = action ? action[index] : 0;
      const place = (value) => (100 * (value - row.low)) / (row.high - row.low);
      const [from, to] = [place(0), place(acted)].sort((a, b) => a - b);
      Object.assign(row.bar.style, { left: `${from}%`, width: `${to - from}%` });
      row.value.textContent = `${acted < 0 ? "−" : row.low < 0 ? "+" : ""}${Math.abs(acted).toFixed(3)}${row.unit}`;
    });
  }
}
