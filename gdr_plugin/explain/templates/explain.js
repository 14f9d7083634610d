"use strict";
(() => {
  const main = document.getElementById("content");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true"); // the tokens' own labels say the same
  document.body.append(tip);
  let shown = null;

  // The values of a token are those of its row in the panel's table.
  const facts = (token) => {
    const panel = token.closest(".panel");
    const at = [...token.parentNode.children].indexOf(token);
    const names = [...panel.querySelectorAll(".values thead th")].map((cell) => cell.textContent);
    const row = panel.querySelectorAll(".values tbody tr")[at];
    return { at, panel, values: [...row.children].map((cell, i) => [names[i], cell.textContent]) };
  };

  const hide = () => {
    tip.hidden = true;
    if (shown === null) return;
    shown.token.classList.remove("on");
    shown.panel.querySelectorAll(".cursor, .dot").forEach((mark) => { mark.hidden = true; });
    shown = null;
  };

  const show = (token) => {
    if (shown !== null && shown.token === token) return;
    hide();
    const { at, panel, values } = facts(token);
    shown = { token, panel };
    token.classList.add("on");
    const [x, y] = panel.querySelector(".curve").dataset.marks.split(" ")[at].split(":");
    const cursor = panel.querySelector(".cursor"), dot = panel.querySelector(".dot");
    cursor.style.left = dot.style.left = `${x}%`;
    dot.style.top = `${y}%`;
    cursor.hidden = dot.hidden = false;
    const head = document.createElement("strong"), list = document.createElement("dl");
    head.textContent = `${values[0][1]}: ${values[1][1]}`;
    for (const [name, value] of values.slice(2)) {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = name;
      said.textContent = value;
      list.append(term, said);
    }
    tip.replaceChildren(head, list);
    tip.hidden = false;
    const box = token.getClientRects()[0] || token.getBoundingClientRect();
    const wide = document.documentElement.clientWidth, size = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, wide - size.width - 8));
    const below = box.bottom + 10 + size.height <= window.innerHeight || box.top - 10 - size.height < 0;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 10 : box.top - 10 - size.height) + window.scrollY}px`;
  };

  const label = (token) => {
    const { values } = facts(token);
    const parts = values.slice(2).map(([name, value]) => `${name} ${value}`);
    token.setAttribute("aria-label", `${values[1][1]}: ${parts.join(", ")}`);
  };

  const go = (token) => {
    if (!token) return;
    for (const other of token.parentNode.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    token.tabIndex = 0;
    label(token);
    token.focus();
  };

  // The nearest token of the line above or below.
  const line = (token, down) => {
    const from = token.getBoundingClientRect(), middle = (from.left + from.right) / 2;
    let best = null, score = Infinity;
    for (const other of token.parentNode.children) {
      const box = other.getBoundingClientRect();
      const rows = down ? box.top - from.top : from.top - box.top;
      if (rows < from.height / 2) continue;
      const far = rows * 1000 + Math.max(box.left - middle, middle - box.right, 0);
      if (far < score) [best, score] = [other, far];
    }
    return best;
  };

  for (const tokens of document.querySelectorAll(".tokens")) {
    tokens.addEventListener("focusin", (event) => { label(event.target); show(event.target); });
    tokens.addEventListener("focusout", hide);
    tokens.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".t");
      if (token) show(token);
    });
    tokens.addEventListener("pointerleave", () => {
      hide();
      if (document.activeElement && document.activeElement.classList.contains("t")) show(document.activeElement);
    });
    tokens.addEventListener("click", (event) => go(event.target.closest(".t")));
    tokens.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const token = event.target.closest(".t"), all = [...tokens.children], at = all.indexOf(token);
      const forward = getComputedStyle(tokens).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
      const back = forward === "ArrowLeft" ? "ArrowRight" : "ArrowLeft";
      const next = {
        [forward]: () => all[at + 1], [back]: () => all[at - 1], Home: () => all[0], End: () => all[all.length - 1],
        PageDown: () => all[Math.min(at + 10, all.length - 1)], PageUp: () => all[Math.max(at - 10, 0)],
        ArrowDown: () => line(token, true), ArrowUp: () => line(token, false),
      }[event.key];
      if (!next) return;
      event.preventDefault();
      go(next());
    });
  }

  for (const plot of document.querySelectorAll(".plot")) {
    const panel = plot.closest(".panel"), tokens = panel.querySelector(".tokens").children;
    const places = plot.parentNode.dataset.marks.split(" ").map((mark) => parseFloat(mark));
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * 100;
      const at = places.findIndex((place) => place >= x);
      show(tokens[at < 0 ? places.length - 1 : at]);
    });
    plot.addEventListener("pointerleave", hide);
  }

  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  const choose = (view) => { hide(); main.dataset.show = view; };
  for (const input of document.querySelectorAll(".views input")) {
    input.addEventListener("change", () => choose(input.value));
    if (input.checked) choose(input.value);
  }
})();
