// Comfort only, as in script.js.
(() => {
  // A click on a tensor or a token marks it wherever it occurs; Escape removes the marks.
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

  // Below a picture of attention stand the two tokens of the cell under the pointer.
  const words = [...document.querySelectorAll(".token")].map((token) => token.textContent);
  document.querySelectorAll(".heads figure").forEach((figure) => {
    const [picture, caption] = figure.children;
    const name = caption.textContent;
    const show = (event) => {
      const box = picture.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left) / box.width * words.length);
      const row = Math.floor((event.clientY - box.top) / box.height * words.length);
      const title = event.target.closest("rect")?.textContent ?? `${words[row]} → ${words[column]}`;
      caption.textContent = column <= row && row < words.length ? `${name}: ${title}` : name;
    };
    picture.addEventListener("pointermove", show);
    picture.addEventListener("pointerdown", show);
    picture.addEventListener("pointerleave", () => { caption.textContent = name; });
  });
})();
