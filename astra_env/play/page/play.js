// The page of `astra-env play`: one socket, what it says on the page, and what the page asks for.

import { Inputs, Sliders, isTyping, keyName, lightKeys, showLegend } from "./inputs.js";
import { Latency, Screen, unpack } from "./pictures.js";

const get = (id) => document.getElementById(id);
const figures = [...document.querySelectorAll("figure")];
const latency = new Latency();
const page = { playing: true, step: 0, branches: 1, recording: false, player: "random" };
let hello, inputs, sliders, screen;

const socket = new WebSocket(`ws://${location.host}/socket`);
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : receive(data));
let ended = "The connection has ended; reload the page for a new world.";
socket.onclose = () => problem(ended);
const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

let turn = Promise.resolve(); // pictures are decoded beside each other; all that comes is shown in order
function hear(news) {
  if (news.type === "hello") begin(news);
  if (news.type === "problem") {
    latency.forget(); // what was asked for may never be shown
    problem(news.text);
  }
  if (news.type === "end") ended = news.text;
  if (news.type === "saved") turn = turn.then(() => showSaved(news));
}

function receive(data) {
  const unpacked = unpack(data);
  turn = turn.then(async () => {
    const header = await unpacked;
    send({ type: "seen", number: header.number });
    screen.show(header);
    tell(header);
  });
}

function problem(text) {
  get("problem").hidden = false;
  get("problem").firstElementChild.textContent = text;
}

// 1. What the page says

function begin(news) {
  hello = news;
  document.title = `${hello.environment} – astra-env play`;
  get("environment").textContent = hello.environment;
  get("description").textContent = hello.description;
  get("axes").textContent = hello.modality.frame;
  get("prompt").hidden = !hello.reads_text;
  inputs = new Inputs(hello, send, (number, time) => page.playing && latency.pressed(number, time));
  sliders = new Sliders(hello, inputs, get("sliders"));
  screen = new Screen(figures, hello, showLatency);
  showLegend(hello, get("legend"), figures[0].querySelector(".caps"));
  const words = { right: "to the side", down: "up and down" };
  get("mouse").hidden = !hello.mouse.length;
  get("mouse").textContent = `Drag on the picture, or click it and move the mouse (Esc ends it): ${hello.mouse
    .map((way) => words[way]).reverse().join(", ")}.`;
  for (const [index, figure] of figures.entries()) {
    const select = figure.querySelector("select");
    for (const name of ["you", "held", ...hello.players]) select.append(new Option(whose(name), name));
    select.addEventListener("change", () => {
      select.blur(); // it shows who acts again, whoever is chosen elsewhere
      choose(index, select.value);
    });
  }
  setStrength(hello.key_share);
  get("pace").textContent = `A step lasts ${1000 * hello.chunk_seconds} ms; a key that is pressed begins one at once.`;
}

const whose = (name) => ({ you: "You act", held: "Same action on", random: "Random policy" })[name] ?? `Policy ${name.split(":").pop()}`;

function tell(header) {
  const [left] = header.branches;
  Object.assign(page, { playing: header.playing, branches: header.branches.length });
  get("play").firstChild.data = header.playing ? "Pause " : "Play ";
  page.recording = header.recording.steps !== null;
  get("record").classList.toggle("on", page.recording);
  get("record").firstChild.data = page.recording ? "■ Stop " : "● Record ";
  const { steps, episodes } = header.recording;
  if (steps !== null || episodes) {
    get("recorded").hidden = false;
    get("recording").textContent = `${episodes} episode${episodes === 1 ? "" : "s"} recorded` +
      (steps === null ? "" : `, ${(steps * hello.chunk_seconds).toFixed(1)} s of the next`);
  }
  for (const id of ["keep-left", "keep-right"]) get(id).hidden = page.branches < 2;
  for (const id of ["fork", "noise-label"]) get(id).hidden = page.branches > 1;
  if (!left) return;
  if (left.step === 0 && document.activeElement !== get("seed")) get("seed").value = header.seed;
  page.step = left.step;
  Object.assign(get("time"), { min: left.oldest, max: left.newest });
  if (document.activeElement !== get("time")) get("time").value = left.step;
  get("clock").textContent = `${left.seconds.toFixed(1)} s, step ${left.step}`;
  sliders.show(left.action, header.settings);
  lightKeys(hello, inputs.held());
  header.branches.forEach((branch, index) => {
    const select = figures[index].querySelector("select");
    if (document.activeElement !== select) select.value = branch.by;
    figures[index].querySelector(".told").textContent = sentence(branch);
  });
}

function sentence(branch) {
  const turned = Math.round(branch.heading);
  const way = turned ? (turned < 0 ? " right" : " left") : "";
  const parts = [`reward ${branch.reward.toFixed(2)}`];
  if (branch.speed !== undefined) parts.push(`${branch.speed.toFixed(1)} m/s`);
  parts.push(`turned ${Math.abs(turned)}°${way}`);
  if (branch.over) parts.push(branch.success ? "done" : "over");
  return parts.join(" · ");
}

function showLatency(header) {
  latency.drawn(header);
  const count = latency.milliseconds.length;
  const told = (p50, p95) => `p50 ${p50.toFixed(0)} ms, p95 ${p95.toFixed(0)} ms`;
  if (count) get("latency-page").textContent = `${told(latency.percentile(0.5), latency.percentile(0.95))} (${count})`;
  if (header.latency) get("latency-server").textContent = told(...header.latency);
  const dropped = header.dropped ? `, ${header.dropped} left out` : "";
  get("latency-step").textContent = `${header.milliseconds.toFixed(0)} ms, shows ${1000 * hello.chunk_seconds} ms${dropped}`;
}

function showSaved(news) {
  const links = news.files.flatMap(({ name, url }) => {
    const link = Object.assign(document.createElement("a"), { href: url, download: name });
    link.textContent = name.endsWith(".rrd") ? "Rerun" : "LeRobot (zip)";
    return [link, " "];
  });
  get("recording").replaceChildren(...links.slice(-4), `also in ${news.folder}`);
}

// 2. What the page asks for

const choose = (branch, by) => {
  if (hello.players.includes(by)) page.player = by;
  send({ type: "choose", branch, by });
};
const go = (to) => send({ type: "go", to });
const play = (on) => {
  latency.forget();
  send({ type: "play", on });
};
const actions = {
  play: () => play(!page.playing),
  back: () => go(page.step - 1),
  second: () => go(page.step - Math.round(1 / hello.chunk_seconds)),
  step: (event) => {
    if (page.playing) play(false);
    send({ type: "step", id: ++inputs.number });
    latency.pressed(inputs.number, event.timeStamp);
  },
  reset: () => send({ type: "reset", seed: seedOf() }),
  fork: () => send({ type: "fork", by: "held", other_noise: get("noise").checked }),
  "keep-left": () => send({ type: "join", keep: 0 }),
  "keep-right": () => send({ type: "join", keep: 1 }),
  record: () => send({ type: "record", on: !page.recording }),
  save: () => send({ type: "save" }),
};
const keys = { p: "play", ",": "back", ".": "step", backspace: "second", n: "reset", c: "fork", o: "record" };

// A seed that was typed in counts once; then each start has the next one.
let typed = false;
function seedOf() {
  const seed = Math.trunc(Number(get("seed").value)) + (typed ? 0 : 1);
  typed = false;
  get("seed").value = seed;
  return seed;
}

get("seed").addEventListener("input", () => (typed = true));
for (const [id, action] of Object.entries(actions)) {
  get(id).addEventListener("click", (event) => {
    get(id).blur(); // the next key is meant for the world
    action(event);
  });
}
get("dismiss").addEventListener("click", () => (get("problem").hidden = true));
get("time").addEventListener("input", () => go(Number(get("time").value)));
for (const id of ["time", "strength", "noise"]) get(id).addEventListener("change", () => get(id).blur());
get("strength").addEventListener("input", () => setStrength(Number(get("strength").value)));
get("prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  send({ type: "prompt", text: get("prompt").firstElementChild.value });
  document.activeElement.blur();
});

function setStrength(share) {
  inputs.strength = share;
  get("strength").value = share;
  get("strength").nextElementSibling.textContent = `${Math.round(100 * share)} %`;
}

get("image").addEventListener("change", async () => {
  const [file] = get("image").files;
  get("image").value = "";
  if (!file) return;
  if (file.size > hello.limits.upload) {
    problem(`The picture is too large, expected ${hello.limits.upload / 2 ** 20} MB at most.`);
    return;
  }
  const answer = await fetch(`image/${hello.token}`, { method: "POST", body: file });
  if (!answer.ok) problem(await answer.text());
});

addEventListener("keydown", (event) => {
  if (!inputs || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target === get("seed"))) event.target.blur();
    return;
  }
  if (inputs.keyDown(event)) lightKeys(hello, inputs.held());
  else if (!event.repeat && keyName(event) === "t") choose(0, figures[0].querySelector("select").value === "you" ? page.player : "you");
  else if (keyName(event) in keys) {
    event.preventDefault();
    const name = keys[keyName(event)];
    if (name !== "fork" || page.branches === 1) actions[name](event);
  }
});
addEventListener("keyup", (event) => {
  inputs?.keyUp(event);
  if (inputs) lightKeys(hello, inputs.held());
});
addEventListener("blur", () => inputs?.letGo());
document.addEventListener("visibilitychange", () => document.hidden && inputs && play(false));

const picture = figures[0].querySelector(".picture");
picture.addEventListener("pointermove", (event) => {
  const caught = document.pointerLockElement === picture;
  if (caught || event.buttons & 1) inputs?.moveMouse(event.movementX, event.movementY);
});
picture.addEventListener("pointerdown", (event) => {
  if (document.pointerLockElement !== picture) picture.setPointerCapture(event.pointerId);
});
picture.addEventListener("click", (event) => {
  if (hello?.mouse.length && !dragged(event)) picture.requestPointerLock();
});
let from = null;
picture.addEventListener("pointerdown", (event) => (from = [event.clientX, event.clientY]), true);
const dragged = (event) => from && Math.hypot(event.clientX - from[0], event.clientY - from[1]) > 4;
