"use strict";
(function () {
  const SHOWN = 100; // episodes listed at first, and added by each "Show more"
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const { queries, detector, agents } = page;
  const names = Object.keys(agents);
  const find = (id) => document.getElementById(id);
  const search = find("search"), agent = find("agent"), sort = find("sort"), more = find("more");
  const list = find("episodes"), panel = find("episode");
  let order = [], shown = SHOWN, open = -1;

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  // tIoU after refinement: mean over the seeds of each agent.
  const after = Object.fromEntries(names.map((name) => {
    const seeds = Object.values(agents[name]);
    return [name, detector.ious.map((_, i) => mean(seeds.map((seed) => seed.ious[i])))];
  }));

  function element(tag, attributes, text) {
    const svg = ["svg", "rect", "line", "text", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function signed(value) {
    return (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(2);
  }

  function tiou(i) { return names.length ? after[agent.value][i] : detector.ious[i]; }

  function choose() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const gain = (i) => tiou(i) - detector.ious[i];
    const keys = {
      gain, loss: (i) => -gain(i), after: tiou, before: (i) => detector.ious[i], order: (i) => -i,
    };
    const key = keys[sort.value];
    order = queries.query.map((_, i) => i).filter((i) => {
      const text = (queries.query[i] + " " + queries.vid[i] + " " + queries.qid[i]).toLowerCase();
      return words.every((word) => text.includes(word));
    });
    order.sort((a, b) => key(b) - key(a) || a - b);
    shown = SHOWN;
    fill();
  }

  function fill() {
    list.replaceChildren(...order.slice(0, shown).map((i) => {
      const gain = tiou(i) - detector.ious[i];
      const button = element("button", { type: "button", "data-row": i, "aria-current": String(i === open) });
      const kind = gain > 1e-6 ? "up" : gain < -1e-6 ? "down" : "";
      const mark = { up: "▲ ", down: "▼ " }[kind] || "";
      button.append(element("span", { class: "gain " + kind }, mark + signed(gain)));
      button.append(element("span", {}, queries.query[i]));
      const item = element("li");
      item.append(button);
      return item;
    }));
    more.hidden = order.length <= shown;
    find("count").textContent = order.length + (order.length === 1 ? " episode" : " episodes");
  }

  function seconds(span) { return span[0].toFixed(1) + "–" + span[1].toFixed(1) + " s"; }

  function rowsOf(i) {
    const rows = [
      { name: "ground truth", spans: queries.moments[i], kind: "truth", note: "" },
      { name: "detector", spans: [detector.spans[i]], kind: "fill s0", note: "tIoU " + detector.ious[i].toFixed(2) },
    ];
    names.forEach((name, number) => {
      const colour = number < 6 ? number + 1 : (number % 6) + 1;
      for (const [seed, answer] of Object.entries(agents[name])) {
        const several = Object.keys(agents[name]).length > 1;
        rows.push({
          name: several ? name + ", seed " + seed : name, spans: [answer.spans[i]], kind: "fill s" + colour,
          note: "tIoU " + answer.ious[i].toFixed(2) + " (" + signed(answer.ious[i] - detector.ious[i]) + ")",
        });
      }
    });
    return rows;
  }

  function timeline(i) {
    const rows = rowsOf(i), duration = queries.duration[i];
    const left = 190, right = 560, width = 700, pitch = 36, top = 8, bottom = top + pitch * rows.length;
    const x = (time) => left + Math.min(Math.max(time / duration, 0), 1) * (right - left);
    const said = rows.map((row) => row.name + " " + row.spans.map(seconds).join(" and ") + " " + row.note);
    const svg = element("svg", {
      viewBox: "0 0 " + width + " " + (bottom + 34), role: "img", "aria-label": "Timeline: " + said.join("; "),
    });
    const bar = (span, y, height, kind) => svg.append(element("rect", {
      x: x(span[0]), y, width: Math.max(x(span[1]) - x(span[0]), 1.5), height, class: kind,
    }));
    for (const moment of queries.moments[i]) bar(moment, top, bottom - top, "truth-pale");
    rows.forEach((row, number) => {
      const y = top + pitch * number;
      svg.append(element("text", { x: 0, y: y + 22, class: "name" }, row.name));
      for (const span of row.spans) bar(span, y + 9, 18, row.kind);
      const times = row.spans.length > 1 ? row.spans.length + " moments" : seconds(row.spans[0]);
      svg.append(element("text", { x: right + 8, y: y + (row.note ? 15 : 22) }, times));
      if (row.note) svg.append(element("text", { x: right + 8, y: y + 30 }, row.note));
    });
    svg.append(element("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "grid" }));
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((step) => duration / step <= 8) || 2000;
    for (let time = 0; time <= duration; time += steps) {
      svg.append(element("line", { x1: x(time), x2: x(time), y1: bottom, y2: bottom + 5, class: "grid" }));
      svg.append(element("text", { x: x(time), y: bottom + 20, "text-anchor": "middle" }, String(time)));
    }
    svg.append(element("text", { x: right + 8, y: bottom + 20 }, "seconds"));
    return svg;
  }

  function show(i, focus) {
    open = i;
    for (const button of list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.row) === i));
    }
    panel.replaceChildren(
      element("h3", {}, "“" + queries.query[i] + "”"),
      element("p", { class: "note" }, "video " + queries.vid[i] + ", query " + queries.qid[i] + ", "
        + queries.duration[i].toFixed(1) + " s"),
      timeline(i),
    );
    if (focus) panel.focus();
  }

  names.forEach((name) => agent.append(element("option", { value: name }, name)));
  agent.disabled = names.length === 0;
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", choose);
  agent.addEventListener("change", choose);
  sort.addEventListener("change", choose);
  more.addEventListener("click", () => { shown += SHOWN; fill(); });
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.row), false);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) { event.preventDefault(); next.focus(); show(Number(next.dataset.row), false); }
  });
  choose();
  if (order.length) show(order[0], false);
})();
