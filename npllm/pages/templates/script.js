// Comfort only: the page is complete without it.
"use strict";
(() => {
  const links = [...document.querySelectorAll(".contents a")];
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));

  // On a narrow screen the contents would cover the first page.
  const contents = document.querySelector(".contents details");
  if (contents && window.matchMedia("(max-width: 75rem)").matches) contents.open = false;

  // The section that is read is marked in the contents; -1 above the first one.
  const here = () => {
    let last = -1;
    sections.forEach((section, i) => { if (section && section.getBoundingClientRect().top < 120) last = i; });
    return last;
  };
  const mark = () => {
    const last = here();
    links.forEach((link, i) => {
      link.classList.toggle("here", i === last);
      if (i === last) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    });
  };
  if (links.length) {
    document.addEventListener("scroll", mark, { passive: true });
    mark();
  }

  // j and k go to the next and to the previous section.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const step = { j: 1, k: -1 }[event.key];
    const section = step && sections[Math.max(here() + step, 0)];
    if (section) section.scrollIntoView();
  });
})();
