"use strict";
// The routes of the server, from its own openapi.json. Nothing is loaded from elsewhere.

function el(tag, text = "", ...children) {
  const node = document.createElement(tag);
  node.append(text, ...children);
  return node;
}

function bodies(operation) {
  const content = (operation.requestBody || {}).content || {};
  return Object.entries(content).map(([type, body]) => {
    const box = el("details", "", el("summary", type));
    box.append(el("pre", JSON.stringify(body.schema || {}, null, 1)));
    return box;
  });
}

function answers(operation) {
  const list = el("ul");
  for (const [status, answer] of Object.entries(operation.responses || {})) list.append(el("li", `${status}: ${answer.description}`));
  return el("details", "", el("summary", "Answers"), list);
}

async function start() {
  const key = sessionStorage.getItem("tauon-key") || "";
  const response = await fetch("openapi.json", key ? { headers: { authorization: `Bearer ${key}` } } : {});
  if (!response.ok) {
    document.getElementById("status").textContent = `${response.status}: enter your API key on the page of the model first.`;
    return;
  }
  const api = await response.json();
  document.title = api.info.title;
  document.getElementById("name").textContent = api.info.title;
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = el("section");
      section.className = "result";
      section.append(el("h2", `${method.toUpperCase()} ${path}`), el("p", operation.description || operation.summary || ""));
      for (const p of operation.parameters || []) section.append(el("p", `${p.name} (${p.in}): ${p.description || ""}`));
      section.append(...bodies(operation), answers(operation));
      document.getElementById("routes").append(section);
    }
  }
}

start();
