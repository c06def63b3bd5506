// Draws the curves of one or several runs, and draws them again when they change. Without scripts, SVG stands there.
(() => {
  const place = document.getElementById("charts");
  if (!place) return;
  const GROUPS = [
    ["Loss", ["loss", "validation_loss"]], ["Bits per byte, validation, in drawn orders", ["validation_bits_per_byte"]],
    ["Validation", ["validation_accuracy", "validation_pearson", "validation_macro_f1"]],
    ["Learning rate", ["learning_rate"]], ["Gradient norm", ["gradient_norm"]], ["Tokens per second", ["tokens_per_second"]],
  ];
  const colours = ["--one", "--two", "--three", "--four", "--five", "--six"];
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const several = place.dataset.several ? JSON.parse(place.dataset.several) : null;
  let plots = [];

  const kept = (runs) => ({hooks: {draw: [(plot) => {
    runs.forEach((run, at) => {
      if (run.kept == null) return;
      const x = Math.round(plot.valToPos(run.kept, "x", true));
      if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) return;
      plot.ctx.save();
      plot.ctx.strokeStyle = several ? style(colours[at % 6]) : style("--soft");
      plot.ctx.setLineDash([3, 4]);
      plot.ctx.beginPath(); plot.ctx.moveTo(x, plot.bbox.top); plot.ctx.lineTo(x, plot.bbox.top + plot.bbox.height); plot.ctx.stroke();
      plot.ctx.restore();
    });
  }]}});

  const axis = (extra) => ({stroke: style("--soft"), grid: {stroke: style("--line"), width: 1}, ticks: {stroke: style("--line"), width: 1}, font: "11px system-ui, sans-serif", ...extra});

  const draw = (runs) => {
    for (const plot of plots) plot.destroy();
    plots = [];
    place.replaceChildren();
    for (const [title, names] of GROUPS) {
      const tables = [], series = [{label: "step"}];
      runs.forEach((run, at) => {
        const mine = names.filter((name) => run.series[name]);
        if (!mine.length) return;
        tables.push([run.steps, ...mine.map((name) => run.series[name])]);
        for (const name of mine) {
          const index = several ? at : names.indexOf(name);
          const label = name.replaceAll("_", " ");
          series.push({
            label: several ? `…${run.id.slice(-4)} ${label}` : label, stroke: style(colours[index % 6]), width: 1.6, spanGaps: true,
            dash: several && names.indexOf(name) ? [5, 4] : undefined,
            points: {show: name.startsWith("validation"), size: 5},
            value: (plot, value) => value == null ? "–" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(4),
          });
        }
      });
      if (!tables.length) continue;
      const card = document.createElement("div");
      card.className = "card chart";
      const head = document.createElement("h3");
      head.textContent = title;
      card.append(head);
      place.append(card);
      plots.push(new uPlot({
        width: Math.max(240, card.clientWidth - 26), height: 220, series, plugins: [kept(runs)],
        scales: {x: {time: false}}, axes: [axis({}), axis({size: 62, values: (plot, all) => all.map((one) => Number(one.toPrecision(4)).toLocaleString("en", {maximumSignificantDigits: 4}))})], legend: {live: true}, cursor: {drag: {x: true, y: false}},
      }, uPlot.join(tables), card));
    }
  };

  let last = [];
  const load = async () => {
    const addresses = several ? several : [{id: "", address: place.dataset.curves}];
    const answers = await Promise.all(addresses.map(async (one) => {
      const answer = await fetch(one.address);
      return answer.ok ? {...await answer.json(), id: one.id} : null;
    }));
    const runs = answers.filter((one) => one && one.steps.length);
    if (runs.length) { last = runs; draw(runs); }
  };
  load();
  if (place.dataset.live) window.watch(place.dataset.live, load);
  document.addEventListener("theme", () => draw(last));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(last));
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => draw(last), 150); });
})();
