"use strict";
// The page works without this script; it adds the timeline and the choice of theme.

const byId = (id) => document.getElementById(id);

// ---- theme

const THEMES = ["system", "light", "dark"];

function setUpTheme(changed) {
  const button = byId("theme");
  let theme = "system";
  try { theme = localStorage.getItem("ctxwatch-theme") || theme; } catch { /* no storage for local files */ }
  const apply = () => {
    if (!THEMES.includes(theme)) theme = "system";
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    changed();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("ctxwatch-theme", theme); } catch { /* as above */ }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  apply();
}

// ---- links

/** A link to a finding opens it; the browser's own way there would leave it closed, and the focus nowhere. */
function setUpLinks() {
  for (const link of document.querySelectorAll(".heads a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      openDetails(byId(link.hash.slice(1)));
    });
  }
}

function openDetails(details) {
  if (!details) return;
  details.open = true;
  details.scrollIntoView({ block: "start" });
  details.querySelector("summary").focus();
}

// ---- data

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f8: Float64Array };

async function decode(column) {
  const packed = Uint8Array.from(atob(column.data), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new ARRAYS[column.type](await new Response(stream).arrayBuffer());
  if (!column.delta) return values;
  const whole = new Float64Array(values.length);
  let sum = 0;
  for (let at = 0; at < values.length; at++) whole[at] = sum += values[at];
  return whole;
}

async function load(document) {
  for (const lane of document.cpus) {
    const names = Object.keys(lane).filter((name) => lane[name].data !== undefined);
    const arrays = await Promise.all(names.map((name) => decode(lane[name])));
    names.forEach((name, at) => { lane[name] = arrays[at]; });
    lane.bins = await Promise.all(lane.bins.map(decode));
    // The latest end up to each handler: where to begin for those that reach into a view.
    lane.reach = new Float64Array(lane.start.length);
    lane.deepest = 0;
    let latest = 0;
    for (let at = 0; at < lane.start.length; at++) {
      lane.reach[at] = latest = Math.max(latest, lane.start[at] + lane.length[at]);
      lane.deepest = Math.max(lane.deepest, lane.depth[at]);
    }
  }
  document.findings.sort((a, b) => a.time - b.time);
  return document;
}

/** Index of the first value that is not below `wanted`, in an array that does not fall. */
function lowerBound(values, wanted) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low;
}

// ---- words

function duration(nanoseconds, digits = 3) {
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (nanoseconds >= size) return `${(nanoseconds / size).toFixed(digits)} ${unit}`;
  }
  return `${nanoseconds.toFixed(0)} ns`;
}

function address(lane, at) {
  const place = lane.place[at];
  const hex = (lane.high[place] * 2 ** 32 + lane.low[place]).toString(16);
  const exact = lane.high[place]
    ? lane.high[place].toString(16) + lane.low[place].toString(16).padStart(8, "0")
    : hex;
  const name = lane.names[(lane.named[place] || 0) - 1];
  return name ? `${name} (0x${exact})` : `0x${exact}`;
}
