"use strict";
/* Lets readers select a node of the drawn graph, shows its facts, and changes the graph's size. */
(() => {
  const lineage = JSON.parse(document.getElementById("data").textContent);
  const nodes = new Map(lineage.nodes.map((node) => [node.id, { ...node, outputs: [] }]));
  for (const [input, artifact] of lineage.edges) nodes.get(input).outputs.push(artifact);

  const BUTTONS = 54; // height below a narrow screen's graph
  const LARGEST = 2, STEP = 1.4; // of the scale, and from one scale to the next
  const graph = document.getElementById("graph");
  const panel = document.getElementById("panel");
  const narrow = matchMedia("(max-width: 860px)"); // as in the style sheet: the graph runs down, the facts are below it
  graph.querySelector(narrow.matches ? ".wide" : ".narrow").remove();
  const svg = graph.querySelector("svg");
  const drawn = new Map([...svg.querySelectorAll("[data-id]")].map((group) => [group.dataset.id, group]));

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const short = (digest) => (digest.includes(":") ? digest.slice(digest.indexOf(":") + 1) : digest).slice(0, 12);
  const name = (node) => node.title || short(node.digest);

  /* Size. The whole graph is in view until somebody asks for more of it. */

  let asked = null; // the scale that somebody chose; null: what fits

  function fitting() {
    const box = svg.viewBox.baseVal;
    const top = graph.getBoundingClientRect().top + scrollY;
    const tall = narrow.matches ? Math.max(160, innerHeight - top - BUTTONS) : graph.clientHeight;
    return Math.min(1, graph.clientWidth / box.width, tall / box.height);
  }

  function resize() {
    const box = svg.viewBox.baseVal, scale = asked ?? fitting();
    svg.setAttribute("width", box.width * scale);
    svg.setAttribute("height", box.height * scale);
    document.getElementById("fit").disabled = asked === null;
  }

  function zoom(factor) {
    const before = svg.clientWidth, middle = graph.scrollLeft + graph.clientWidth / 2, centre = graph.scrollTop + graph.clientHeight / 2;
    const scale = (asked ?? fitting()) * factor;
    asked = factor && scale > fitting() ? Math.min(LARGEST, scale) : null;
    resize();
    const grown = svg.clientWidth / before;
    graph.scrollLeft = middle * grown - graph.clientWidth / 2;
    graph.scrollTop = centre * grown - graph.clientHeight / 2;
  }

  function zooming() {
    for (const [id, factor] of [["closer", STEP], ["farther", 1 / STEP], ["fit", 0]]) {
      document.getElementById(id).addEventListener("click", () => zoom(factor));
    }
    addEventListener("resize", resize);
    addEventListener("beforeprint", () => { asked = null; resize(); });
  }

  function onKey(event, node) {
    const moves = [() => node.inputs[0], () => node.outputs[0], () => beside(node, -1), () => beside(node, 1)];
    const keys = narrow.matches ? ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"] : ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
    const go = Object.fromEntries(keys.map((key, index) => [key, moves[index]]));
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(node.id);
    } else if (go[event.key]) {
      event.preventDefault();
      const next = go[event.key]();
      if (next) drawn.get(next).focus();
    }
  }

  function beside(node, step) {
    const [along, across] = narrow.matches ? ["y", "x"] : ["x", "y"];
    const at = (id) => drawn.get(id).querySelector(".box")[along].baseVal.value;
    const place = (id) => drawn.get(id).querySelector(".box")[across].baseVal.value;
    const column = [...drawn.keys()].filter((id) => at(id) === at(node.id)).sort((a, b) => place(a) - place(b));
    return column[column.indexOf(node.id) + step];
  }

  /* Selection. */

  function reach(id, side, found = new Set()) {
    for (const next of nodes.get(id)[side]) {
      if (!found.has(next)) reach(next, side, found.add(next));
    }
    return found;
  }

  function choose(id) {
    if (location.hash === hashOf(id)) select(id);
    else location.hash = hashOf(id);
  }

  const hashOf = (id) => `#node=${encodeURIComponent(id)}`;

  function select(id) {
    const sources = reach(id, "inputs").add(id);
    const results = reach(id, "outputs").add(id);
    svg.classList.add("selecting");
    for (const [other, group] of drawn) {
      group.classList.toggle("selected", other === id);
      group.classList.toggle("related", sources.has(other) || results.has(other));
      group.setAttribute("aria-pressed", String(other === id));
    }
    for (const edge of svg.querySelectorAll(".edge")) {
      const ends = [edge.dataset.from, edge.dataset.to];
      edge.classList.toggle("lit", [sources, results].some((reached) => ends.every((id) => reached.has(id))));
    }
    describe(nodes.get(id));
    reveal(drawn.get(id).getBoundingClientRect(), graph.getBoundingClientRect());
  }

  function reveal(box, view) {
    if (box.left < view.left || box.right > view.right) graph.scrollLeft += (box.left + box.right - view.left - view.right) / 2;
    if (box.top < view.top || box.bottom > view.bottom) graph.scrollTop += (box.top + box.bottom - view.top - view.bottom) / 2;
  }

  function fromAddress() {
    let id;
    try {
      id = decodeURIComponent((location.hash.match(/^#node=(.*)$/) || [])[1] || "");
    } catch {
      id = "";
    }
    select(nodes.has(id) ? id : lineage.root);
  }

  /* The panel. */

  function describe(node) {
    panel.className = `kind-${node.type}`;
    panel.scrollTop = 0;
    panel.replaceChildren(
      make("div", { class: "type" }, node.cached === null ? node.type : `${node.type} · ${node.cached ? "cached" : "made in this run"}`),
      make("h2", {}, name(node)),
      digestOf(node.digest),
      ...decision(node), ...facts(node), ...files(node),
      ...section("Execution", execution(node)),
      ...links("Made from", node.inputs), ...links("Used by", node.outputs),
      ...folded("Parameters", flat(node.execution.parameters || {})),
      ...folded("Machine", flat(node.execution.machine || {})),
    );
  }

  function digestOf(digest) {
    const button = make("button", { type: "button", "aria-label": `Copy ${digest}` }, "Copy");
    const code = make("code", {}, digest);
    button.addEventListener("click", () => copy(digest, code, button));
    return make("div", { class: "digest" }, code, button);
  }

  async function copy(text, shown, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages from a file may not use the clipboard that way in every browser.
      getSelection().selectAllChildren(shown);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  function decision(node) {
    if (node.type !== "registration" || !node.facts.length) return [];
    const promoted = String(node.metadata.promoted) === "true";
    return [make("p", { class: promoted ? "decision promoted" : "decision" }, node.facts[0])];
  }

  function facts(node) {
    const told = node.type === "registration" ? ["reason", "gate_decision"] : node.type === "files" ? ["files"] : node.type === "file" ? ["checksum"] : [];
    const rows = Object.entries(node.metadata).filter(([key, value]) => !told.includes(key) && value !== "").map(([key, value]) => [key, key === "size" ? size(value) : shown(value)]);
    if (node.uri && node.type !== "file") rows.push(["place", node.uri]);
    return section("Facts", rows);
  }

  function files(node) {
    if (node.type !== "files") return [];
    const list = make("ul", { class: "files" });
    for (const file of node.metadata.files) list.append(make("li", {}, `${file.uri} · ${size(file.size)}`, make("code", {}, file.checksum)));
    return [make("h3", {}, "Files"), list];
  }

  function execution(node) {
    const made = node.execution;
    if (!made.step) return [];
    const code = made.code || {};
    const seconds = (Date.parse(made.ended) - Date.parse(made.started)) / 1000;
    const rows = [
      ["step", made.step], ["run", made.run], ["started", moment(made.started)],
      ["duration", Number.isFinite(seconds) ? duration(seconds) : ""], ["version", code.version], ["git", code.git_sha],
      ["code", code.fingerprint], ["image", made.image_digest], ["why", node.reason],
    ];
    return rows.filter(([, value]) => value).map(([key, value]) => [key, String(value)]);
  }

  function section(title, rows) {
    return rows.length ? [make("h3", {}, title), table(rows)] : [];
  }

  function folded(title, rows) {
    return rows.length ? [make("details", {}, make("summary", {}, `${title} (${rows.length})`), table(rows))] : [];
  }

  function table(rows) {
    const list = make("dl");
    for (const [key, value] of rows) list.append(make("dt", {}, key.replaceAll("_", " ")), make("dd", {}, /^(sha256:|[0-9a-f]{40})/.test(value) ? make("code", {}, value) : value));
    return list;
  }

  function links(title, ids) {
    if (!ids.length) return [];
    const list = make("ul");
    for (const id of ids) {
      const node = nodes.get(id);
      list.append(make("li", {}, `${node.type} `, make("a", { href: hashOf(id) }, name(node))));
    }
    return [make("h3", {}, title), list];
  }

  function flat(value, prefix = "") {
    return Object.entries(value).flatMap(([key, inner]) =>
      inner !== null && typeof inner === "object" && !Array.isArray(inner) ? flat(inner, `${prefix}${key}.`) : [[prefix + key, shown(inner)]]);
  }

  const shown = (value) => (typeof value === "string" ? value : Number.isSafeInteger(value) ? value.toLocaleString("en") : JSON.stringify(value));
  const moment = (text) => (text ? `${String(text).slice(0, 19).replace("T", " ")} UTC` : "");
  const duration = (s) => (s < 60 ? `${s.toFixed(1)} s` : s < 3600 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`);

  function size(bytes) {
    let amount = Number(bytes) || 0;
    if (amount < 1000) return `${amount} B`;
    for (const unit of ["kB", "MB", "GB"]) {
      amount /= 1000;
      if (amount < 1000) return `${amount.toFixed(1)} ${unit}`;
    }
    return `${(amount / 1000).toFixed(1)} TB`;
  }

  function header() {
    const root = nodes.get(lineage.root);
    document.title = `Lineage of ${lineage.subject}`;
    document.getElementById("subject").textContent = `of ${lineage.subject}`;
    const status = document.getElementById("status");
    status.textContent = `${root.type} ${name(root)}, ${nodes.size} nodes. Select one for its facts.`;
    if (!lineage.run) return;
    const error = lineage.run.error;
    status.textContent = `run ${lineage.run.id} ${lineage.run.status}${error ? ` in ${error.step}: ${error.message}` : ""}`;
    status.classList.toggle("failed", Boolean(error));
  }

  for (const [id, group] of drawn) {
    group.addEventListener("click", () => choose(id));
    group.addEventListener("keydown", (event) => onKey(event, nodes.get(id)));
  }
  header();
  zooming();
  resize();
  fromAddress();
  narrow.addEventListener("change", () => location.reload());
  addEventListener("hashchange", fromAddress);
})();
