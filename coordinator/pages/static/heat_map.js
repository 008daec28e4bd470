// Draws the visible part of the trials x folds heat map on a canvas, and describes the cell under the pointer or the
// keyboard cursor.

const box = document.getElementById("heat");
const canvas = box.querySelector("canvas");
const spacer = box.querySelector(".spacer");
const tip = document.getElementById("heat-tip");
const order = document.getElementById("heat-order");
const root = document.querySelector("[data-study]");
const path = `/studies/${box.dataset.study}`;

const RUNNING = 1;
const FAILED = 2;
const DONE = 3;
const LABEL = 44; // pixels at the left for the trial number
const VALUE = 58; // pixels at the right for the accuracy
const MAX_HEIGHT = 480; // pixels of the visible part, at most

let map = null; // the coordinator's reply, see heat_map.py
let cells = null;
let columns = []; // index of the fold in each column
let rows = []; // index of the trial in each row
let height = 12; // pixels of a row
let cursor = null; // [row, column]
let colours = {};
let markOf = () => ""; // the colour of a rule

async function load() {
  const answer = await fetch(`${path}/heat-map`).catch(() => null);
  if (!answer?.ok) return;
  map = await answer.json();
  const bytes = Uint8Array.from(atob(map.cells), (letter) => letter.charCodeAt(0));
  cells = new DataView(bytes.buffer);
  columns = map.order ?? map.folds.map((_, fold) => fold);
  arrange();
}

const cell = (trial, fold) => cells.getUint16(2 * (trial * map.folds.length + fold), true);
const set = (trial, fold, value) => cells.setUint16(2 * (trial * map.folds.length + fold), value, true);

function arrange() {
  rows = map.trials.map((_, trial) => trial);
  if (order.value === "newest") rows.reverse();
  if (order.value === "best") {
    // Complete trials come first, because they were tested on all clips.
    const worth = (trial) => (map.trials[trial][1] === "complete" ? 2 : 0) + (map.trials[trial][2] ?? -1);
    rows.sort((a, b) => worth(b) - worth(a) || a - b);
  }
  height = rows.length <= 24 ? 16 : rows.length <= 60 ? 11 : 8;
  draw();
  box.dataset.drawn = rows.length;
  performance.mark("heat map drawn");
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const stops = [rgb(of("heat-0")), rgb(of("heat-1")), rgb(of("heat-2"))];
  markOf = (rule) => of(`mark-${map.marks[rule]}`) || colours.failed;
  colours = {
    empty: of("heat-empty"), ink: of("ink"), soft: of("soft"), running: of("running"), failed: of("failed"),
    scale: Array.from({ length: 65 }, (_, step) => {
      const [from, to, part] = step < 32 ? [stops[0], stops[1], step / 32] : [stops[1], stops[2], (step - 32) / 32];
      return `rgb(${from.map((low, i) => Math.round(low + (to[i] - low) * part)).join(" ")})`;
    }),
  };
}

function draw() {
  if (map === null) return;
  const width = box.clientWidth;
  const whole = Math.max(1, rows.length) * height;
  // Whole rows only, so that no label is cut off.
  const seen = Math.min(whole, Math.floor(MAX_HEIGHT / height) * height);
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(seen * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(seen * scale);
    canvas.style.height = `${seen}px`;
  }
  box.style.maxHeight = `${seen}px`;
  spacer.style.height = `${whole - seen}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, seen);
  const step = (width - LABEL - VALUE) / columns.length;
  const gap = step > 5 ? 1 : 0;
  const line = height > 6 ? 1 : 0;
  const first = Math.floor(box.scrollTop / height);
  const last = Math.min(rows.length, Math.ceil((box.scrollTop + seen) / height));
  pen.font = `${Math.min(11, height)}px system-ui, "DejaVu Sans", sans-serif`;
  pen.textBaseline = "middle";
  const every = Math.ceil(11 / height);
  for (let row = first; row < last; row += 1) {
    const trial = rows[row];
    const [number, , accuracy, rule, prunedAt] = map.trials[trial];
    const y = row * height - box.scrollTop;
    for (let column = 0; column < columns.length; column += 1) {
      const fold = columns[column];
      const value = cell(trial, fold);
      const x = LABEL + column * step;
      if (value >= DONE) pen.fillStyle = colours.scale[Math.round((64 * (value - DONE)) / map.clips[fold])];
      else if (value === RUNNING) pen.fillStyle = colours.running;
      else if (value === FAILED) pen.fillStyle = colours.failed;
      else pen.fillStyle = colours.empty;
      pen.fillRect(x, y, Math.max(0.5, step - gap), height - line);
      if (rule !== undefined && fold === prunedAt) {
        pen.fillStyle = markOf(rule);
        pen.fillRect(x + step - Math.max(2.5, Math.min(4, step / 3)), y, Math.max(2.5, Math.min(4, step / 3)), height - line);
      }
    }
    if (row % every === 0) {
      pen.fillStyle = colours.soft;
      pen.textAlign = "right";
      pen.fillText(String(number), LABEL - 8, y + height / 2);
      if (accuracy !== null) pen.fillText(`${(100 * accuracy).toFixed(1)} %`, width - 4, y + height / 2);
    }
  }
  if (cursor !== null) {
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 1.5;
    pen.strokeRect(LABEL + cursor[1] * step - 0.75, cursor[0] * height - box.scrollTop - 0.75, step + 1, height + 0.5);
  }
}

function describe() {
  if (cursor === null || map === null) return;
  const [row, column] = cursor;
  const trial = rows[row];
  const fold = columns[column];
  const [number, state, accuracy, rule, prunedAt] = map.trials[trial];
  const value = cell(trial, fold);
  let what = "not run";
  if (value >= DONE) what = `${value - DONE} of ${map.clips[fold]} clips correct`;
  else if (value === RUNNING) what = "running";
  else if (value === FAILED) what = "failed";
  if (fold === prunedAt) what += `, pruned here by ${rule}`;
  const percent = accuracy === null ? "" : `, ${(100 * accuracy).toFixed(2)} %`;
  tip.textContent = `trial ${number} (${state}${percent}) · ${map.folds[fold]} · ${what}`;
}

function under(event) {
  const frame = canvas.getBoundingClientRect();
  const step = (frame.width - LABEL - VALUE) / columns.length;
  const row = Math.floor((event.clientY - frame.top + box.scrollTop) / height);
  const column = Math.floor((event.clientX - frame.left - LABEL) / step);
  return row >= 0 && row < rows.length && column >= 0 && column < columns.length ? [row, column] : null;
}

function point(to) {
  cursor = to;
  if (to === null) tip.textContent = "\u00a0";
  describe();
  draw();
}

const open = () => location.assign(`${path}/trials/${map.trials[rows[cursor[0]]][0]}`);

canvas.addEventListener("pointermove", (event) => map !== null && point(under(event)));
canvas.addEventListener("pointerleave", () => point(null));
canvas.addEventListener("click", (event) => {
  cursor = map === null ? null : under(event);
  if (cursor !== null) open();
});
box.addEventListener("scroll", () => requestAnimationFrame(draw));
box.addEventListener("keydown", (event) => {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const keys = { PageUp: [-20, 0], PageDown: [20, 0], Home: [0, -columns.length], End: [0, columns.length] };
  const move = moves[event.key] ?? keys[event.key];
  if (event.key === "Enter" && cursor !== null) return open();
  if (move === undefined || map === null || rows.length === 0) return;
  event.preventDefault();
  const inside = (value, size) => Math.max(0, Math.min(size - 1, value));
  // The first key only shows the cursor.
  const to = cursor === null ? [0, 0] : [inside(cursor[0] + move[0], rows.length), inside(cursor[1] + move[1], columns.length)];
  const top = to[0] * height;
  if (top < box.scrollTop) box.scrollTop = top;
  if (top + height > box.scrollTop + box.clientHeight) box.scrollTop = top + height - box.clientHeight;
  point(to);
});
order.addEventListener("change", arrange);
new ResizeObserver(draw).observe(box);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  draw();
});

// --- Live updates ------------------------------------------------------------------------------------------

root.addEventListener("study-event", ({ detail }) => {
  if (map === null || detail.kind !== "fold_accepted") return;
  const trial = map.trials.findIndex(([number]) => number === detail.data.trial);
  if (trial < 0) return;
  set(trial, detail.data.fold, DONE + detail.data.correct);
  map.trials[trial][2] = detail.data.trial_accuracy;
  draw();
});

let counts = "";
root.addEventListener("refreshed", ({ detail }) => {
  if (map === null) return;
  const now = `${detail.trials} ${detail.ended}`;
  if (now !== counts) {
    // A trial was created or has ended, so its row is loaded again.
    counts = now;
    load().then(describe);
    return;
  }
  const running = new Set(detail.running.split(" ").filter(Boolean));
  map.trials.forEach(([number, state], trial) => {
    if (state !== "running" && state !== "ready") return;
    for (const fold of columns) {
      const value = cell(trial, fold);
      if (value <= RUNNING) set(trial, fold, running.has(`${number}:${fold}`) ? RUNNING : 0);
    }
  });
  draw();
});

readColours();
load();
