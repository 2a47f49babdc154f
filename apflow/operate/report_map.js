"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const ramp = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const $ = id => document.getElementById(id);
const ccds = [...document.querySelectorAll(".ccd")];

function add(parent, tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return parent.appendChild(node);
}
function option(select, value, text) { add(select, "option", text).value = value; }
data.visits.forEach((v, i) => option($("visit"), i, v.id + (v.band ? "  ·  " + v.band : "")));
option($("metric"), -1, "outcome");
data.metrics.forEach((m, i) => option($("metric"), i, m.label + (m.unit ? ", " + m.unit : "")));

function mix(fraction) {
  const at = Math.min(Math.max(fraction, 0), 1) * (ramp.length - 1), i = Math.min(Math.floor(at), ramp.length - 2);
  return `color-mix(in srgb, ${ramp[i + 1]} ${Math.round(100 * (at - i))}%, ${ramp[i]})`;
}
function show(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1e5 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
}
function draw() {
  const v = +$("visit").value || 0, m = data.metrics[+$("metric").value];
  ccds.forEach((ccd, d) => {
    const state = data.state[v][d], value = m && m.values[v][d];
    ccd.classList.toggle("absent", state === null);
    ccd.style.fill = state === null ? "" : !m ? `var(--${state}, var(--failed))`
      : value === null ? "" : mix((value - m.low) / ((m.high - m.low) || 1));
  });
  const legend = $("legend"); legend.replaceChildren();
  if (m) {
    add(legend, "div", undefined, "ramp").style.background = `linear-gradient(90deg, ${ramp.join(",")})`;
    const known = m.values[v].filter(x => x !== null).sort((a, b) => a - b);
    const ends = add(legend, "div", undefined, "ends");
    add(ends, "span", show(m.low)); add(ends, "span", m.unit); add(ends, "span", show(m.high));
    if (known.length) add(legend, "div",
      `this visit: ${show(known[0])} to ${show(known[known.length - 1])}, median ${show(known[known.length >> 1])}`, "quiet");
  } else {
    const counts = {};
    data.state[v].forEach(s => { if (s !== null) counts[s] = (counts[s] || 0) + 1; });
    for (const [state, n] of Object.entries(counts).sort((a, b) => b[1] - a[1])) {
      const item = add(legend, "div", undefined, "item"), name = add(item, "span");
      add(name, "i", undefined, "dot s-" + state); name.append(state); add(item, "span", n);
    }
  }
  const troubles = $("troubles"); troubles.replaceChildren();
  data.detectors.forEach((det, d) => {
    const state = data.state[v][d];
    if (state === null || state === "done") return;
    const item = add(troubles, "li"); add(item, "i", undefined, "dot s-" + state);
    add(item, "b", `${det.name} `); item.append(`${state} `); add(item, "span", data.cause[v][d], "quiet");
  });
  if (!troubles.children.length) add(troubles, "li", "none", "quiet");
}
function tip(event) {
  const ccd = event.target.closest(".ccd"), box = $("tip");
  if (!ccd) { box.style.display = "none"; return; }
  const v = +$("visit").value || 0, d = +ccd.dataset.d, det = data.detectors[d], state = data.state[v][d];
  box.replaceChildren();
  add(box, "b", `${det.name}  ·  detector ${det.id}`);
  if (state === null) add(box, "div", `${det.purpose}, not processed`, "quiet");
  else {
    const line = add(box, "div"); add(line, "i", undefined, "dot s-" + state); line.append(state);
    if (data.cause[v][d]) add(box, "div", data.cause[v][d], "quiet");
    const table = add(box, "table");
    data.metrics.slice(0, 12).forEach(m => {
      if (m.values[v][d] === null) return;
      const row = add(table, "tr"); add(row, "td", m.label, "quiet"); add(row, "td", `${show(m.values[v][d])} ${m.unit}`);
    });
  }
  box.style.display = "block";
  const right = event.clientX + 18 + box.offsetWidth > innerWidth;
  box.style.left = (right ? event.clientX - 18 - box.offsetWidth : event.clientX + 18) + "px";
  box.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)) + "px";
}
$("map").addEventListener("mousemove", tip);
$("map").addEventListener("mouseleave", tip);
$("visit").addEventListener("change", draw);
$("metric").addEventListener("change", draw);
$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const wanted = new URLSearchParams(location.hash.slice(1));
for (const id of ["visit", "metric"]) if (wanted.has(id)) $(id).value = wanted.get(id);
if (wanted.has("theme")) document.documentElement.dataset.theme = wanted.get("theme");
draw();
