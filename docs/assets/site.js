// What screen readers and keyboards miss in the theme: names of its parts, and the keyboard in what scrolls.
function name() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  // The bar with the copy button is a landmark of every block; a button is enough.
  for (const bar of document.querySelectorAll(".md-code__nav")) bar.setAttribute("role", "none");
  // A corner of a table without a text heads nothing.
  for (const cell of document.querySelectorAll(".md-typeset th:empty")) cell.replaceWith(document.createElement("td"));
  for (const part of document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap, .md-typeset pre")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
}

new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", name);
name();
