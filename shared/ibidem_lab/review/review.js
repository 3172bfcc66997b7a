"use strict"
// Keys press the buttons and links that name them (data-key); each page is answered once.
let sent = false
addEventListener("pageshow", () => { sent = false })
document.addEventListener("submit", event => {
  if (sent) event.preventDefault()
  sent = true
})
document.addEventListener("keydown", event => {
  const at = event.target
  const typing = at instanceof HTMLElement && at.matches("input, textarea, select")
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return
  // The letter; where the keyboard writes no Latin ones, the place of the key.
  const letter = /^[a-z]$/i.test(event.key) ? event.key : event.code.replace(/^Key/, "")
  const button = [...document.querySelectorAll("[data-key]")].find(
    one => one.dataset.key === letter.toLowerCase())
  if (!button) return
  event.preventDefault()
  button.click()
})
