"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  const remembered = () => { try { return localStorage.getItem("pellucid-theme"); } catch { return null; } };
  const asked = /theme=(dark|light)/.exec(location.hash);
  const wanted = asked ? asked[1] : remembered();
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("pellucid-theme", root.dataset.theme); } catch { /* a page without storage forgets */ }
    label();
  });

  const rows = [...document.querySelectorAll(".row")];
  const all = document.getElementById("all");
  const large = document.getElementById("large");
  if (all) {
    const name = () => { all.textContent = rows.every((row) => row.open) ? "Close all" : "Open all"; };
    all.parentElement.hidden = false;
    name();
    all.addEventListener("click", () => {
      const open = !rows.every((row) => row.open);
      rows.forEach((row) => { row.open = open; });
      name();
    });
    rows.forEach((row) => row.addEventListener("toggle", name));
    large.addEventListener("click", () => {
      const on = document.getElementById("gallery").classList.toggle("large");
      large.setAttribute("aria-pressed", String(on));
    });
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.long)")];
    closed.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
})();
