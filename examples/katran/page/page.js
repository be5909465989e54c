// The page of a running balancer. It asks /api/status every two seconds, and /api/reals for the VIPs that are open;
// rates are differences of counters over the time between two answers.
"use strict";

const EVERY = 2000; // milliseconds
const KEPT = 60; // points of a chart: two minutes
const MANY = 1000; // rows that are drawn at most

const $ = (id) => document.getElementById(id);
const charts = new Map(); // key -> rates, the newest last
const opened = new Set();
const rows = new Map(); // VIP -> its row
let last = null;
let lastReals = new Map();
let sorting = { key: "bits", down: true };
let visible = new Set();
let linked = decodeURIComponent(location.hash.slice(1));

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { visible.add(entry.target); draw(entry.target); } else visible.delete(entry.target);
  }
});

function number(value) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  const units = ["", " k", " M", " G", " T", " P"];
  let at = 0;
  while (Math.abs(value) >= 999.5 && at < units.length - 1) { value /= 1000; at += 1; }
  const digits = at === 0 ? (value !== 0 && value < 10 && value % 1 ? 1 : 0) : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return value.toFixed(digits) + units[at];
}

function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  const s = Math.round(seconds);
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

// A counter never goes back; if it does, the program was loaded again, and there is no rate yet.
function rate(now, before, seconds) {
  if (before === undefined || seconds <= 0 || now < before) return undefined;
  return (now - before) / seconds;
}

// Packets and bits a second of something with counters; it may not have been there before.
function traffic(now, was = {}, seconds) {
  const bits = (of) => (of.bytes === undefined ? undefined : 8 * of.bytes);
  return { packets: rate(now.packets, was.packets, seconds), bits: rate(bits(now), bits(was), seconds) };
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function remember(key, value) {
  let points = charts.get(key);
  if (!points) charts.set(key, (points = []));
  points.push(value === undefined ? null : value);
  if (points.length > KEPT) points.shift();
}

function chart(key, label) {
  const canvas = element("canvas");
  canvas.width = 360;
  canvas.height = 48;
  canvas.dataset.key = key;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  watcher.observe(canvas);
  return canvas;
}

function draw(canvas) {
  const points = charts.get(canvas.dataset.key) || [];
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  const most = Math.max(...points.map((point) => point || 0), 1);
  const x = (at) => width - (points.length - 1 - at) * (width / (KEPT - 1));
  const y = (value) => height - 3 - (value / most) * (height - 6);
  context.beginPath();
  let begun = false;
  points.forEach((point, at) => {
    if (point === null) return;
    if (begun) context.lineTo(x(at), y(point)); else context.moveTo(x(at), y(point));
    begun = true;
  });
  if (!begun) return;
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 3;
  context.stroke();
  context.lineTo(width, height);
  context.lineTo(x(points.findIndex((point) => point !== null)), height);
  context.fillStyle = style.getPropertyValue("--fill");
  context.globalAlpha = 0.6;
  context.fill();
  context.globalAlpha = 1;
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// Reals: those that get new flows, and all of them.
function health(vip) {
  return vip.reals === 0 ? 0 : vip.serving / vip.reals;
}

function vipRow(vip) {
  const row = element("tr");
  const name = element("td", undefined, "address");
  const open = element("button", vip.vip, "open");
  open.type = "button";
  open.setAttribute("aria-expanded", "false");
  open.addEventListener("click", () => toggle(vip.vip));
  name.append(open);
  const cells = ["health", "packets", "bits", "chart", "unsettled"].map((of) => {
    const cell = element("td", undefined, of === "chart" ? "chart" : of === "health" ? "" : "n");
    row[of] = cell;
    return cell;
  });
  row.chart.append(chart(vip.vip, `bits a second of ${vip.vip}, the last two minutes`));
  row.append(name, ...cells);
  row.open = open;
  return row;
}

function toggle(vip) {
  const row = rows.get(vip);
  if (opened.delete(vip)) {
    row.open.setAttribute("aria-expanded", "false");
    row.below.remove();
    row.below = undefined;
    lastReals.delete(vip);
    return;
  }
  opened.add(vip);
  row.open.setAttribute("aria-expanded", "true");
  row.below = element("tr", undefined, "reals");
  const cell = element("td", "Asking...");
  cell.colSpan = 6;
  row.below.append(cell);
  row.after(row.below);
  reals(vip).catch((error) => text(cell, `No answer: ${error.message}`));
}

const REAL_COLUMNS = ["Real", "health", "weight", "packets/s", "bit/s", "share", "last 2 minutes, bit/s"];

async function reals(vip) {
  const answer = await ask(`/api/reals?vip=${encodeURIComponent(vip)}`);
  const row = rows.get(vip);
  if (!row || !row.below) return;
  const before = lastReals.get(vip);
  const seconds = before ? answer.now - before.now : 0;
  const old = new Map((before ? before.reals : []).map((real) => [real.address, real]));
  lastReals.set(vip, answer);
  const cell = row.below.firstChild;
  let table = cell.querySelector("table");
  if (!table) {
    table = element("table");
    table.append(element("caption", `Reals of ${vip}`, "soft"));
    const head = element("tr");
    REAL_COLUMNS.forEach((name, at) => {
      const of = element("th", name, at >= 2 && at <= 5 ? "n" : "");
      of.scope = "col";
      head.append(of);
    });
    const top = element("thead");
    top.append(head);
    table.append(top, element("tbody"));
    table.of = new Map();
    cell.replaceChildren(table);
  }
  const body = table.tBodies[0];
  const rates = answer.reals.map((real) => ({ real, ...traffic(real, old.get(real.address), seconds) }));
  const all = rates.reduce((sum, of) => sum + (of.packets || 0), 0);
  const heaviest = Math.max(...answer.reals.map((real) => real.weight), 1);
  const there = new Set();
  for (const { real, packets, bits } of rates) {
    there.add(real.address);
    let line = table.of.get(real.address);
    const key = `${vip} ${real.address}`;
    if (!line) {
      line = element("tr");
      line.cells_ = REAL_COLUMNS.map((_, at) => element("td", undefined, at === 0 ? "address" : at === 6 ? "chart" : at >= 2 ? "n" : ""));
      line.append(...line.cells_);
      text(line.cells_[0], real.address);
      line.cells_[2].append(element("span"), element("span", undefined, "bar"));
      line.cells_[2].lastChild.append(element("i"));
      line.cells_[2].lastChild.setAttribute("aria-hidden", "true");
      line.cells_[6].append(chart(key, `bits a second to ${real.address}, the last two minutes`));
      table.of.set(real.address, line);
      body.append(line);
    }
    remember(key, bits);
    const [, state, weight, p, b, share, graph] = line.cells_;
    const answers = !real.result || real.result === "answers" || real.health === "not probed";
    text(state, answers ? real.health : `${real.health}: ${real.result}`);
    state.title = real.history.map((of) => `${new Date(1000 * of.time).toLocaleString()} ${of.up ? "up" : `down: ${of.reason}`}`).join("\n");
    state.className = { up: "good", down: "bad", "not probed": "soft" }[real.health] || "warn";
    text(weight.firstChild, String(real.weight));
    weight.lastChild.firstChild.style.width = `${(100 * real.weight) / heaviest}%`;
    text(p, number(packets));
    text(b, number(bits));
    text(share, all > 0 && packets !== undefined ? `${((100 * packets) / all).toFixed(1)} %` : "–");
    if (visible.has(graph.firstChild)) draw(graph.firstChild);
  }
  for (const [address, line] of table.of) {
    if (!there.has(address)) { watcher.unobserve(line.querySelector("canvas")); line.remove(); table.of.delete(address); charts.delete(`${vip} ${address}`); }
  }
}

function fill(table, lines, make) {
  const body = $(table).tBodies[0];
  body.replaceChildren(...lines.map((of) => {
    const row = element("tr");
    row.append(...make(of));
    return row;
  }));
}

function nothing(columns, words) {
  const cell = element("td", words, "soft");
  cell.colSpan = columns;
  return [cell];
}

function findings(list) {
  const isProblem = (of) => of.severity === "PROBLEM";
  const bad = list.filter((of) => isProblem(of) || of.severity === "warning");
  const lines = bad.map((of) => {
    const line = element("li", undefined, isProblem(of) ? "bad" : "warn");
    const word = isProblem(of) ? "Problem" : "Warning";
    line.append(element("b", `${word}: ${[of.interface, of.subject].filter(Boolean).join(", ")}`), element("span", of.message));
    if (of.advice) line.append(element("code", of.advice));
    return line;
  });
  if (lines.length === 0) lines.push(element("li", "None was found.", "good"));
  const words = lines.map((line) => line.textContent).join("\n");
  if ($("findings").dataset.words !== words) {
    $("findings").dataset.words = words;
    $("findings").replaceChildren(...lines);
  }
  return [bad.filter(isProblem).length, bad.length];
}

// A real is drained when all of its VIPs are done with it.
function byReal(drains) {
  const reals = new Map();
  for (const of of drains) {
    const one = reals.get(of.real);
    if (!one) { reals.set(of.real, { ...of, vips: 1 }); continue; }
    one.vips += 1;
    one.done = one.done && of.done;
    one.silent = one.silent === null || of.silent === null ? null : Math.min(one.silent, of.silent);
  }
  return [...reals.values()];
}

function order(list) {
  const value = { vip: (v) => v.vip, health, packets: (v) => v.rates.packets || 0, bits: (v) => v.rates.bits || 0, unsettled: (v) => v.unsettled || 0 }[sorting.key];
  const sign = sorting.down ? -1 : 1;
  const names = new Intl.Collator("en", { numeric: true });
  return list.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const by = typeof x === "string" ? names.compare(x, y) : x - y;
    return by !== 0 ? sign * by : names.compare(a.vip, b.vip);
  });
}

function fits(vip, words) {
  const own = `${vip.vip} ${vip.serving < vip.reals ? "down" : ""} ${vip.serving === 0 ? "dead" : ""}`.toLowerCase();
  return words.every((word) => own.includes(word));
}

function vips(list) {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = order(list.filter((vip) => fits(vip, words)));
  const shown = fitting.slice(0, MANY);
  text($("shown"), `${shown.length} of ${list.length}`);
  const body = $("vip-table").tBodies[0];
  const wanted = [];
  for (const vip of shown) {
    let row = rows.get(vip.vip);
    if (!row) rows.set(vip.vip, (row = vipRow(vip)));
    text(row.health, `${vip.serving} of ${vip.reals}`);
    row.health.className = vip.serving === 0 ? "bad" : vip.serving < vip.reals ? "warn" : "good";
    text(row.packets, number(vip.rates.packets));
    text(row.bits, number(vip.rates.bits));
    text(row.unsettled, vip.unsettled ? `${number(vip.unsettled)}, ${duration(vip.oldest)}` : "0");
    const canvas = row.chart.firstChild;
    if (visible.has(canvas)) draw(canvas);
    wanted.push(row);
    if (row.below) wanted.push(row.below);
  }
  // A link to a VIP (#203.0.113.1:443/tcp) opens it when it is there.
  if (linked && rows.has(linked) && !opened.has(linked)) { const to = linked; linked = ""; toggle(to); wanted.splice(wanted.indexOf(rows.get(to)) + 1, 0, rows.get(to).below); }
  // Rows that stay where they are keep the focus.
  wanted.forEach((row, at) => {
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null);
  });
  while (body.children.length > wanted.length) body.lastChild.remove();
  const there = new Set(list.map((vip) => vip.vip));
  for (const [name, row] of rows) {
    if (!there.has(name)) { watcher.unobserve(row.chart.firstChild); rows.delete(name); opened.delete(name); charts.delete(name); lastReals.delete(name); }
  }
}

function show(status) {
  const seconds = last ? status.now - last.now : 0;
  const before = new Map((last ? last.vips : []).map((vip) => [vip.vip, vip]));
  const sums = { packets: undefined, bits: undefined, unsettled: 0 };
  for (const vip of status.vips) {
    vip.rates = traffic(vip, before.get(vip.vip), seconds);
    for (const of of ["packets", "bits"]) if (vip.rates[of] !== undefined) sums[of] = (sums[of] || 0) + vip.rates[of];
    sums.unsettled += vip.unsettled || 0;
    remember(vip.vip, vip.rates.bits);
  }
  const wasDrop = new Map((last ? last.drops : []).map((of) => [of.reason, of.packets]));
  const drops = status.drops.map((of) => ({ ...of, rate: rate(of.packets, wasDrop.get(of.reason), seconds) }));
  const dropped = last ? drops.reduce((sum, of) => sum + (of.rate || 0), 0) : undefined;
  text($("host"), location.hostname);
  text($("version"), status.version);
  document.title = `katran ${location.hostname}`;
  text($("all-packets"), number(sums.packets));
  text($("all-bits"), number(sums.bits));
  text($("all-drops"), number(dropped));
  text($("all-flows"), number(rate(status.new_flows, last ? last.new_flows : undefined, seconds)));
  text($("all-unsettled"), number(sums.unsettled));
  const [problems, all] = findings(status.problems);
  const state = $("state");
  state.className = problems ? "bad" : all ? "warn" : "good";
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  text(state, problems ? count(problems, "problem") : all ? count(all, "warning") : "No problem found");
  vips(status.vips);
  $("s-drains").hidden = status.drains.length === 0;
  fill("drains", byReal(status.drains), (of) => [
    element("td", of.real, "address"),
    element("td", of.vips === 1 ? of.vip : `${of.vip} and ${of.vips - 1} more`, "address"),
    element("td", duration(of.silent), "n"), element("td", of.done ? "yes" : "not yet", of.done ? "good" : "warn"),
  ]);
  const seen = drops.filter((of) => of.packets > 0).sort((a, b) => (b.rate || 0) - (a.rate || 0) || b.packets - a.packets);
  if (seen.length) fill("drops", seen, (of) => [element("td", of.reason), element("td", number(of.rate), "n"), element("td", number(of.packets), "n")]);
  else fill("drops", [0], () => nothing(3, "Nothing was dropped."));
  if (status.attachments.length) {
    fill("attachments", status.attachments, (of) => [
      element("td", of.place), element("td", of.mode || "entry of a root program"),
      element("td", of.state, of.state === "attached" ? "good" : "bad"),
    ]);
  } else fill("attachments", [0], () => nothing(3, "Attached to nothing."));
  last = status;
}

async function round() {
  try {
    show(await ask("/api/status"));
    await Promise.all([...opened].map((vip) => reals(vip)));
  } catch (error) {
    const state = $("state");
    state.className = "bad";
    text(state, `No answer from the balancer (${error.message}); the figures are old`);
  }
  setTimeout(round, document.hidden ? 5 * EVERY : EVERY);
}

for (const head of document.querySelectorAll("th[data-key]")) {
  head.querySelector("button").addEventListener("click", () => {
    const { key } = head.dataset;
    sorting = { key, down: sorting.key === key ? !sorting.down : key !== "vip" };
    mark();
    if (last) vips(last.vips);
  });
}

function mark() {
  for (const head of document.querySelectorAll("th[data-key]")) {
    if (head.dataset.key !== sorting.key) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
  }
}

$("filter").addEventListener("input", () => { if (last) vips(last.vips); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const canvas of visible) draw(canvas); });
if (linked) $("filter").value = linked;
mark();
round();
