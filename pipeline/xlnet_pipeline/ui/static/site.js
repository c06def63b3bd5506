// Adds life to pages that work without it: the theme switch, live lists, logs that follow their end.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it lasts as long as the page */ }
    document.dispatchEvent(new Event("theme"));
  });

  // Calls `changed` for each event; closed while the tab is hidden, because a browser opens few connections to one host.
  window.watch = (address, changed) => {
    let source = null;
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(address);
      source.addEventListener("changed", changed);
      source.addEventListener("ended", () => { changed(); close(); document.removeEventListener("visibilitychange", turn); });
    };
    const close = () => { if (source) source.close(); source = null; };
    const turn = () => { if (document.hidden) close(); else { changed(); open(); } };
    document.addEventListener("visibilitychange", turn);
    open();
  };

  // A part of the page that the server sends again when it changes (data-live), or adds lines to (data-follow).
  for (const part of document.querySelectorAll("[data-live-part]")) {
    let source = null, from = "";
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(part.dataset.livePart + (from ? `&from=${from}` : ""));
      source.addEventListener("message", (event) => {
        from = event.lastEventId || from;
        if (part.hasAttribute("data-follow")) part.insertAdjacentHTML("beforeend", event.data);
        else if (!part.contains(document.activeElement)) part.innerHTML = event.data;
      });
      source.addEventListener("ended", () => { close(); if (!part.hasAttribute("data-follow")) location.reload(); });
    };
    const close = () => { if (source) source.close(); source = null; };
    document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
    open();
  }

  if (document.querySelector("table.runs") || (location.pathname === "/runs" && document.querySelector(".empty"))) {
    window.watch("/live/runs", async () => {
      const answer = await fetch(location.href, {headers: {accept: "text/html"}});
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("list"), old = document.getElementById("list");
      if (!fresh || !old) { if (fresh) location.reload(); return; }
      const chosen = new Set([...old.querySelectorAll("input[name=run]:checked")].map((one) => one.value));
      for (const one of fresh.querySelectorAll("input[name=run]")) one.checked = chosen.has(one.value);
      const focus = document.activeElement && old.contains(document.activeElement) ? document.activeElement.value : null;
      old.replaceWith(fresh);
      if (focus) [...fresh.querySelectorAll("input[name=run]")].find((one) => one.value === focus)?.focus();
      enough();
    });
  }

  const enough = () => {
    const compare = document.getElementById("compare-button");
    if (compare) compare.disabled = document.querySelectorAll("input[name=run]:checked").length < 2;
  };
  document.addEventListener("change", enough);
  document.addEventListener("htmx:after:swap", enough);
  enough();

  const log = document.querySelector("pre[data-follow]");
  if (log) {
    const end = () => { log.scrollTop = log.scrollHeight; };
    end();
    new MutationObserver(() => { if (log.scrollHeight - log.scrollTop - log.clientHeight < 400) end(); }).observe(log, {childList: true});
  }
})();
