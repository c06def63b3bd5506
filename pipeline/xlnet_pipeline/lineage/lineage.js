"use strict";
/* The lineage graph: layered from left (files) to right (registration), on a narrow screen from top to bottom, and the facts of the selected node. */
(() => {
  const lineage = JSON.parse(document.getElementById("data").textContent);
  const nodes = new Map(lineage.nodes.map((node) => [node.id, { ...node, outputs: [] }]));
  for (const [input, artifact] of lineage.edges) nodes.get(input).outputs.push(artifact);

  const WIDTH = 176, HEIGHT = 74, GAP_X = 44, GAP_Y = 18, LANE = 20, MARGIN = 16;
  const BUTTONS = 54; // height below a narrow screen's graph
  const LARGEST = 2, STEP = 1.4; // of the scale, and from one scale to the next
  const SVG = "http://www.w3.org/2000/svg";
  const graph = document.getElementById("graph");
  const panel = document.getElementById("panel");
  const narrow = matchMedia("(max-width: 860px)"); // as in the style sheet: the graph runs down, the facts are below it
  const drawn = new Map();
  const edges = [];

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function shape(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const short = (digest) => (digest.includes(":") ? digest.slice(digest.indexOf(":") + 1) : digest).slice(0, 12);
  const name = (node) => node.title || short(node.digest);

  function shorten(element, room) {
    const signs = [...element.textContent];
    for (let kept = signs.length - 1; kept > 8 && element.getComputedTextLength() > room; kept -= 1) {
      const tail = Math.min(8, Math.floor(kept / 2));
      element.textContent = `${signs.slice(0, Math.min(kept, 40) - tail).join("")}…${signs.slice(-tail).join("")}`;
      kept = Math.min(kept, 40);
    }
  }

  /* Layout. A node's column is its longest way from an input file; an edge that jumps columns gets a lane in each. */

  function columnsOf() {
    const depth = new Map();
    const measure = (id) => {
      if (!depth.has(id)) depth.set(id, Math.max(-1, ...nodes.get(id).inputs.map(measure)) + 1);
      return depth.get(id);
    };
    for (const id of nodes.keys()) measure(id);
    const columns = Array.from({ length: Math.max(...depth.values()) + 1 }, () => []);
    // Inputs sit just left of what they were made into, so that a file beside a longer chain does not hang far away.
    for (const [id, node] of nodes) {
      if (!node.inputs.length && node.outputs.length) depth.set(id, Math.min(...node.outputs.map((one) => depth.get(one))) - 1);
    }
    for (const id of nodes.keys()) columns[depth.get(id)].push({ id, before: [], after: [] });
    const slots = new Map(columns.flat().map((slot) => [slot.id, slot]));
    const ways = [];
    for (const [input, artifact] of lineage.edges) {
      const way = [slots.get(input)];
      for (let column = depth.get(input) + 1; column < depth.get(artifact); column += 1) {
        const lane = { before: [], after: [] };
        columns[column].push(lane);
        way.push(lane);
      }
      way.push(slots.get(artifact));
      for (let i = 1; i < way.length; i += 1) {
        way[i].before.push(way[i - 1]);
        way[i - 1].after.push(way[i]);
      }
      ways.push({ input, artifact, way });
    }
    return { columns, ways };
  }

  /* Along: from one column to the next, which on a narrow screen are rows. Across: within a column. */
  function place({ columns, ways }) {
    const down = narrow.matches;
    const [long, wide, gap] = down ? [HEIGHT, WIDTH, GAP_X - 8] : [WIDTH, HEIGHT, GAP_X];
    const extent = (slot) => (slot.id ? wide : LANE);
    const stack = (column) => {
      let across = -(column.reduce((sum, slot) => sum + extent(slot) + GAP_Y, -GAP_Y)) / 2;
      for (const slot of column) {
        slot.across = across + extent(slot) / 2;
        across += extent(slot) + GAP_Y;
      }
    };
    columns.forEach(stack);
    const sort = (column, side) => {
      for (const slot of column) {
        const near = slot[side];
        slot.rank = near.length ? near.reduce((sum, one) => sum + one.across, 0) / near.length : slot.across;
      }
      column.sort((a, b) => a.rank - b.rank || (a.id ? 1 : 0) - (b.id ? 1 : 0));
      stack(column);
    };
    for (let pass = 0; pass < 4; pass += 1) {
      [...columns].reverse().forEach((column) => sort(column, "after"));
      columns.forEach((column) => sort(column, "before"));
    }
    const first = Math.min(...columns.flat().map((slot) => slot.across - extent(slot) / 2));
    columns.forEach((column, index) => {
      for (const slot of column) {
        slot.across += MARGIN - first;
        slot.start = MARGIN + index * (long + gap);
        slot.end = slot.start + long;
        [slot.left, slot.top] = down ? [slot.across - WIDTH / 2, slot.start] : [slot.start, slot.across - HEIGHT / 2];
      }
    });
    const length = 2 * MARGIN + columns.length * (long + gap) - gap;
    const breadth = Math.max(...columns.flat().map((slot) => slot.across + extent(slot) / 2)) + MARGIN;
    return { width: down ? breadth : length, height: down ? length : breadth, columns, ways, down };
  }

  /* Drawing. */

  function pathOf(way, down) {
    const point = (along, across) => (down ? `${across},${along}` : `${along},${across}`);
    let [along, across] = [way[0].end, way[0].across];
    let path = `M${point(along, across)}`;
    for (const slot of way.slice(1)) {
      const end = slot.id ? slot.start - 7 : slot.start;
      const middle = (along + end) / 2;
      path += ` C${point(middle, across)} ${point(middle, slot.across)} ${point(end, slot.across)}`;
      if (!slot.id) path += ` L${point(slot.end, slot.across)}`;
      [along, across] = [slot.end, slot.across];
    }
    return path;
  }

  function draw() {
    const { width, height, columns, ways, down } = place(columnsOf());
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Lineage graph" });
    for (const { input, artifact, way } of ways) {
      const target = way[way.length - 1];
      const line = shape("path", { class: "edge", d: pathOf(way, down) });
      const tip = shape("path", { class: "arrow", d: down ? `M${target.across},${target.start} l-4.5,-8 h9 z` : `M${target.start},${target.across} l-8,-4.5 v9 z` });
      svg.append(line, tip);
      edges.push({ input, artifact, parts: [line, tip] });
    }
    for (const slot of columns.flat()) if (slot.id) svg.append(drawNode(nodes.get(slot.id), slot));
    graph.append(svg);
    for (const text of svg.querySelectorAll("text")) shorten(text, WIDTH - 26);
    return svg;
  }

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

  function drawNode(node, slot) {
    const label = `${node.type} ${name(node)}`;
    const group = shape("g", {
      class: `node kind-${node.type}`, tabindex: "0", role: "button", "aria-pressed": "false",
      "aria-label": label, "data-id": node.id, transform: `translate(${slot.left},${slot.top})`,
    });
    group.append(
      shape("title", {}, label),
      shape("rect", { class: "box", width: WIDTH, height: HEIGHT, rx: 7 }),
      shape("path", { class: "stripe", d: `M7,0 H6 a6,6 0 0 0 -6,6 V${HEIGHT - 6} a6,6 0 0 0 6,6 H7 z` }),
      shape("text", { class: "type", x: 16, y: 21 }, node.metadata.split ? `${node.type} · ${node.metadata.split}` : node.type),
      shape("text", { x: 16, y: 41 }, name(node)),
      shape("text", { class: "minor", x: 16, y: 60 }, summary(node)),
    );
    if (node.cached) group.append(shape("text", { class: "minor", x: WIDTH - 10, y: 21, "text-anchor": "end" }, "cached"));
    group.addEventListener("click", () => choose(node.id));
    group.addEventListener("keydown", (event) => onKey(event, node));
    drawn.set(node.id, { group, slot });
    return group;
  }

  function summary(node) {
    const facts = node.metadata;
    if (node.type === "registration") return facts.gate_decision ? String(facts.gate_decision) : short(node.digest);
    if (node.type === "file" || node.type === "files") return size(facts.size);
    const metric = Object.keys(facts).find((key) => /^validation_(accuracy|pearson)$/.test(key));
    if (metric) return `${metric.slice(11)} ${Number(facts[metric]).toFixed(4)} (val.)`;
    return node.facts.length ? node.facts[0].split(" · ")[0].replace(/ \[.*\]$/, "") : "";
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
      if (next) drawn.get(next).group.focus();
    }
  }

  function beside(node, step) {
    const here = drawn.get(node.id).slot;
    const column = [...drawn].filter(([, { slot }]) => slot.start === here.start).sort((a, b) => a[1].slot.across - b[1].slot.across).map(([id]) => id);
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
    for (const [other, { group }] of drawn) {
      group.classList.toggle("selected", other === id);
      group.classList.toggle("related", sources.has(other) || results.has(other));
      group.setAttribute("aria-pressed", String(other === id));
    }
    for (const { input, artifact, parts } of edges) {
      const lit = (sources.has(input) && sources.has(artifact)) || (results.has(input) && results.has(artifact));
      for (const part of parts) part.classList.toggle("lit", lit);
    }
    describe(nodes.get(id));
    reveal(drawn.get(id).group.getBoundingClientRect(), graph.getBoundingClientRect());
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

  function start() {
    graph.replaceChildren();
    drawn.clear();
    edges.length = 0;
    svg = draw();
    resize();
    fromAddress();
  }

  let svg;
  header();
  zooming();
  start();
  narrow.addEventListener("change", start);
  addEventListener("hashchange", fromAddress);
})();
