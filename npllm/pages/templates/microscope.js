// A click on a tensor or a token marks it wherever it occurs; Escape removes the marks.
(() => {
  const clear = () => document.querySelectorAll(".marked").forEach((each) => each.classList.remove("marked"));
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("a[data-mark]");
    if (!chosen) return;
    clear();
    document.querySelectorAll(`[data-mark="${CSS.escape(chosen.dataset.mark)}"]`).forEach((each) => {
      each.classList.add("marked");
      if (each.tagName === "DETAILS") each.open = true;
    });
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
})();
