// What the theme's script leaves out for the keyboard and the screen reader: what scrolls sideways is reached by Tab, and
// the buttons of a block of code are no landmark.
const SCROLLS = ".md-typeset__scrollwrap, .md-typeset p:has(> img[src$='terminal.svg'])"
const REACHED = { tabindex: "0", role: "group", "aria-label": "Scrolls sideways" }

function mend() {
  for (const one of document.querySelectorAll(SCROLLS))
    for (const [name, value] of Object.entries(REACHED))
      if (one.scrollWidth > one.clientWidth) one.setAttribute(name, value)
      else one.removeAttribute(name)
  for (const one of document.querySelectorAll("nav.md-code__nav")) one.setAttribute("role", "none")
}

new MutationObserver(mend).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", mend)
mend()
