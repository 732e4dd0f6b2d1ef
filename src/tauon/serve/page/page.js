"use strict";
// The page of a server. What it shows follows from /info: a form of columns, a drop zone, a microphone, a chat.

const $ = (id) => document.getElementById(id);
const state = { info: null, key: sessionStorage.getItem("tauon-key") || "", messages: [], stop: null };

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) {
    if (k === "on") for (const [event, f] of Object.entries(v)) node.addEventListener(event, f);
    else if (k in node) node[k] = v;
    else node.setAttribute(k, v);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not JSON: the status says enough */ }
  if (response.status === 401) $("key-line").hidden = false;
  throw new Error(message);
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "error" : "muted";
}

async function busy(button, work) {
  button.disabled = true;
  say("Waiting for the model ...");
  const start = performance.now();
  try {
    await work();
    $("status").scrollIntoView({ block: "nearest" }); // below a long form it would not be seen
    $("answer").scrollIntoView({ block: "nearest" });
    say(`Answered in ${((performance.now() - start) / 1000).toFixed(2)} s.`);
  } catch (err) {
    if (err.name === "AbortError") say("Stopped.");
    else say(err.message, true);
  } finally {
    button.disabled = false;
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const short = (value) => typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)).toString() : String(value);
function curl(path, rest) { $("curl").textContent = `curl ${new URL(path, location.href)} ${rest}`; }

// --- answers ---------------------------------------------------------------------------------------------------------------------

function bars(prediction) {
  const found = Object.entries(prediction).filter(([k]) => k.startsWith("probability_")).map(([k, v]) => [k.slice(12), v]);
  if (!found.length) return null;
  found.sort((a, b) => b[1] - a[1]);
  const box = el("div", { className: "bars" });
  for (const [name, value] of found.slice(0, 12)) {
    const fill = el("i");
    fill.style.width = `${100 * value}%`;
    const track = el("div", { className: "track" }, fill);
    track.setAttribute("role", "img");
    track.setAttribute("aria-label", `${name}: ${(100 * value).toFixed(1)}%`);
    box.append(el("span", {}, name), track, el("span", { className: "number" }, `${(100 * value).toFixed(1)}%`));
  }
  return box;
}

function others(prediction) {
  const rest = Object.entries(prediction).filter(([k, v]) => k !== "prediction" && !k.startsWith("probability_") && v !== null);
  if (!rest.length) return null;
  return el("p", { className: "muted" }, rest.map(([k, v]) => `${k}: ${short(v)}`).join(" · "));
}

function table(rows) {
  const names = Object.keys(rows[0]);
  const head = el("tr", {}, ...names.map((n) => el("th", {}, n)));
  const body = rows.slice(0, 200).map((r) => el("tr", {}, ...names.map((n) => el("td", {}, r[n] === null ? "" : short(r[n])))));
  return el("div", { className: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

function line(rows) {
  const date = Object.keys(rows[0])[0];
  const name = Object.keys(rows[0]).find((k) => typeof rows[0][k] === "number");
  if (!name) return null;
  const values = rows.map((r) => r[name]), low = Math.min(...values), high = Math.max(...values), W = 600, H = 180;
  const y = (v) => H - 20 - (v - low) / ((high - low) || 1) * (H - 40);
  const points = values.map((v, i) => `${(i / Math.max(1, values.length - 1) * (W - 20) + 10).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), path = document.createElementNS(ns, "polyline");
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Forecast of ${name}: from ${short(values[0])} to ${short(values[values.length - 1])}, between ${short(low)} and ${short(high)}`);
  for (const [k, v] of Object.entries({ points, fill: "none", stroke: "currentColor", "stroke-width": 2 })) path.setAttribute(k, v);
  svg.append(path);
  return el("figure", {}, svg, el("figcaption", { className: "muted" },
    `${name}, ${rows[0][date]} to ${rows[rows.length - 1][date]}; lowest ${short(low)}, highest ${short(high)}`));
}

function download(rows) {
  const names = Object.keys(rows[0]);
  const cell = (v) => v === null ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
  const text = [names.map(cell).join(","), ...rows.map((r) => names.map((n) => cell(r[n])).join(","))].join("\n") + "\n";
  return el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "predictions.csv" }, "Download as CSV");
}

function show(answer) {
  const rows = answer.predictions, box = $("answer");
  box.replaceChildren();
  if (state.info.reads === "series") {
    box.append(el("div", { className: "result" }, el("h2", {}, "Forecast"), line(rows), el("p", {}, download(rows)), table(rows)));
    return;
  }
  if (rows.length > 6) {
    box.append(el("div", { className: "result" }, el("h2", {}, `${rows.length} rows`), el("p", {}, download(rows)), table(rows)));
    return;
  }
  rows.forEach((row, i) => {
    const title = rows.length > 1 ? `${i + 1}: ${short(row.prediction)}` : short(row.prediction);
    box.append(el("div", { className: "result" }, el("h2", {}, title), bars(row), others(row), explained((answer.explanations || [])[i])));
  });
}

function explained(found) {
  if (!found) return null;
  const path = typeof found.path === "string" ? found.path : "";
  return el("details", { open: true }, el("summary", {}, "Why"), el("p", { className: "text" }, path || JSON.stringify(found, null, 1).slice(0, 4000)));
}

// --- questions -------------------------------------------------------------------------------------------------------------------

async function send(body, type, explain = false) {
  const headers = type ? { "content-type": type } : {};
  show(await (await call(`predict${explain ? "?explain=true" : ""}`, { method: "POST", body, headers })).json());
}

function explainBox() {
  if (!state.info.explains) return { node: null, on: () => false };
  const input = el("input", { type: "checkbox" });
  return { node: el("label", {}, input, " Explain the answer (takes seconds)"), on: () => input.checked };
}

function files(accept, words, { preview = false, many = true } = {}) {
  const pick = el("input", { type: "file", accept, multiple: many });
  pick.setAttribute("aria-label", words);
  const shown = el("div");
  const zone = el("div", { className: "drop" }, el("p", {}, words), pick, shown);
  const go = el("button", { type: "button", disabled: true }, many ? "Predict the files" : "Predict the file");
  let chosen = [];
  const take = (list) => {
    chosen = [...list].slice(0, 1000);
    go.disabled = !chosen.length;
    shown.replaceChildren(...chosen.slice(0, 8).map((f) => preview && f.type.startsWith("image/")
      ? el("img", { src: URL.createObjectURL(f), alt: f.name }) : el("p", { className: "muted" }, `${f.name} (${Math.ceil(f.size / 1024)} KB)`)));
    if (chosen.length) curl("predict", `-F file=@${quoted(chosen[0].name)}`);
  };
  pick.addEventListener("change", () => take(pick.files));
  for (const event of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(event, (e) => { e.preventDefault(); zone.classList.toggle("over", event === "dragover"); });
  }
  zone.addEventListener("drop", (e) => take(e.dataTransfer.files));
  go.addEventListener("click", () => busy(go, async () => {
    const form = new FormData();
    chosen.forEach((f) => form.append("file", f, f.name));
    await send(form);
  }));
  return { node: el("div", {}, zone, go), take };
}

function rowForm(columns) {
  const inputs = columns.slice(0, 200).map((c) => {
    const input = c.values && c.values.length
      ? el("select", {}, el("option", { value: "" }, "(missing)"), ...c.values.map((v) => el("option", { value: v }, v)))
      : el("input", { type: "text", inputMode: c.kind === "number" ? "decimal" : "text" });
    return [c, input];
  });
  const fields = el("div", { className: "fields" }, ...inputs.map(([c, input]) => el("label", {}, c.name, input)));
  const go = el("button", { type: "submit" }, "Predict"), why = explainBox();
  const form = el("form", {}, fields, el("div", { className: "row" }, go, why.node));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    const row = {};
    for (const [c, input] of inputs) {
      const text = input.value.trim();
      row[c.name] = text === "" ? null : c.kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
    }
    const body = JSON.stringify({ rows: [row] });
    curl("predict", `-H 'content-type: application/json' -d ${quoted(body)}`);
    busy(go, () => send(body, "application/json", why.on()));
  });
  const more = files(".csv,.tsv,.jsonl,.parquet", "A file of rows: CSV, JSON lines or Parquet.", { many: false });
  return [form, el("h2", {}, "Many rows"), more.node];
}

function textForm(column) {
  const area = el("textarea", { ariaLabel: "Text" });
  const go = el("button", { type: "submit" }, "Predict"), why = explainBox();
  const form = el("form", {}, area, el("div", { className: "row" }, go, why.node));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    const body = JSON.stringify({ rows: [{ [column]: area.value }] });
    curl("predict", `-H 'content-type: application/json' -d ${quoted(body)}`);
    busy(go, () => send(body, "application/json", why.on()));
  });
  return [form];
}

// WAV, 16 bits, one channel: what every reader of recordings understands
function wav(parts, rate) {
  const n = parts.reduce((sum, p) => sum + p.length, 0), view = new DataView(new ArrayBuffer(44 + 2 * n));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * n, true); word(8, "WAVEfmt "); view.setUint32(16, 16, true); view.setUint16(20, 1, true);
  view.setUint16(22, 1, true); view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); word(36, "data"); view.setUint32(40, 2 * n, true);
  let at = 44;
  for (const part of parts) for (const x of part) { view.setInt16(at, Math.max(-1, Math.min(1, x)) * 32767, true); at += 2; }
  return new File([view], "microphone.wav", { type: "audio/wav" });
}

function recordingForm() {
  const pick = files(".wav,.flac,audio/wav,audio/flac", "Drop recordings here (WAV, FLAC), or choose them.");
  const button = el("button", { type: "button", className: "plain" }, "Record");
  if (!navigator.mediaDevices) { button.disabled = true; button.title = "The microphone needs https or localhost."; }
  let recorder = null;
  button.addEventListener("click", async () => {
    if (recorder) {
      recorder.stop();
      pick.take([wav(recorder.parts, recorder.rate)]);
      recorder = null;
      button.textContent = "Record";
      say("Recorded. Press the button below.");
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const rate = state.info.sample_rate;
      const context = new AudioContext(rate ? { sampleRate: rate } : {}), parts = [];
      const source = context.createMediaStreamSource(stream), node = context.createScriptProcessor(4096, 1, 1);
      node.onaudioprocess = (e) => parts.push(e.inputBuffer.getChannelData(0).slice());
      source.connect(node); node.connect(context.destination);
      recorder = { parts, rate: context.sampleRate, stop: () => { node.disconnect(); stream.getTracks().forEach((t) => t.stop()); context.close(); } };
      button.textContent = "Stop";
      say("Recording ...");
    } catch (err) { say(`The microphone cannot be used: ${err.message}`, true); }
  });
  return [el("div", { className: "row" }, button), pick.node];
}

async function* streamed(path, body) {
  state.stop = new AbortController();
  const response = await call(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal: state.stop.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function settings() {
  const temperature = el("input", { type: "number", min: 0, max: 5, step: 0.1, value: 0.8 });
  const tokens = el("input", { type: "number", min: 1, step: 1, value: 200 });
  const node = el("div", { className: "row" }, el("label", {}, "Temperature ", temperature), el("label", {}, "Most tokens ", tokens));
  return { node, values: () => ({ temperature: Number(temperature.value), max_tokens: Number(tokens.value) }) };
}

function stopButton() {
  return el("button", { type: "button", className: "plain", on: { click: () => state.stop && state.stop.abort() } }, "Stop");
}

function promptForm() {
  const area = el("textarea", { ariaLabel: "Text to continue" }), how = settings();
  const go = el("button", { type: "submit" }, "Continue the text");
  const form = el("form", {}, area, how.node, el("div", { className: "row" }, go, stopButton()));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    const out = el("span"), body = { model: state.info.name, prompt: area.value, stream: true, ...how.values() };
    $("answer").replaceChildren(el("div", { className: "result text" }, el("span", { className: "muted" }, area.value), out));
    curl("v1/completions", `-H 'content-type: application/json' -d ${quoted(JSON.stringify({ ...body, stream: false }))}`);
    busy(go, async () => { for await (const event of streamed("v1/completions", body)) for (const c of event.choices) out.append(c.text); });
  });
  return [form];
}

function chatForm() {
  const log = el("div", { className: "chat" }), area = el("textarea", { ariaLabel: "Message" }), how = settings();
  const go = el("button", { type: "submit" }, "Send");
  const fresh = el("button", { type: "button", className: "plain", on: { click: () => { state.messages = []; log.replaceChildren(); } } }, "New conversation");
  const form = el("form", {}, area, how.node, el("div", { className: "row" }, go, stopButton(), fresh));
  area.addEventListener("keydown", (e) => { if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); form.requestSubmit(); } });
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    if (!area.value.trim() || go.disabled) return;
    state.messages.push({ role: "user", content: area.value });
    const out = el("p", { className: "assistant" });
    log.append(el("p", { className: "user" }, area.value), out);
    area.value = "";
    const body = { model: state.info.name, messages: state.messages, stream: true, ...how.values() };
    curl("v1/chat/completions", `-H 'content-type: application/json' -d ${quoted(JSON.stringify({ ...body, stream: false }))}`);
    busy(go, async () => {
      try { for await (const event of streamed("v1/chat/completions", body)) for (const c of event.choices) out.append(c.delta.content || ""); }
      finally { state.messages.push({ role: "assistant", content: out.textContent }); }
    });
  });
  return [log, form];
}

const FORMS = {
  rows: () => rowForm(state.info.columns),
  texts: () => textForm((state.info.columns[0] || { name: "text" }).name),
  pictures: () => [files("image/*", "Drop images here, or choose them.", { preview: true }).node],
  recordings: recordingForm,
  series: () => [files(".csv,.tsv,.parquet", "Drop the history of the series here (CSV), or choose it: the model continues it.", { many: false }).node],
  arrays: () => [files(".npz,.npy", "Drop an array here (.npz), or choose it.", { many: false }).node],
  chat: chatForm,
  prompt: promptForm,
};
const WORDS = {
  rows: "It reads rows of a table.", texts: "It reads texts.", pictures: "It reads images.", recordings: "It reads recordings.",
  series: "It continues a time series.", arrays: "It reads arrays.", chat: "It answers messages.", prompt: "It continues a text.",
};

async function start() {
  try {
    state.info = await (await call("info")).json();
    const { info } = state;
    const labels = info.labels || [];
    document.title = info.name;
    $("name").textContent = info.name;
    $("about").textContent = `${WORDS[info.reads] || ""}${labels.length ? ` Answers: ${labels.slice(0, 12).join(", ")}${labels.length > 12 ? ", ..." : ""}.` : ""}`;
    $("version").textContent = `version ${info.version}`;
    $("key-line").hidden = true;
    $("ask").replaceChildren(...(FORMS[info.reads] || (() => [el("p", {}, "This kind of data has no form; see /docs.")]))());
    say("");
  } catch (err) {
    $("about").textContent = "";
    say(err.message, true);
  }
}

$("key-use").addEventListener("click", () => { state.key = $("key").value; sessionStorage.setItem("tauon-key", state.key); start(); });
start();
