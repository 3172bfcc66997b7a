"use strict"
// Keys press the buttons and links that name them (data-key), unless they are turned off, as is needed
// where speech or another program types; each page is answered once.
let sent = false
const keys = document.getElementById("keys")
let on = sessionStorage.getItem("keys") !== "off"
const tell = () => {
  document.documentElement.classList.toggle("keyless", !on)
  keys.setAttribute("aria-pressed", String(on))
}
tell()
keys.addEventListener("click", () => {
  on = !on
  sessionStorage.setItem("keys", on ? "on" : "off")
  tell()
})
addEventListener("pageshow", () => { sent = false })
document.addEventListener("submit", event => {
  if (sent) event.preventDefault()
  sent = true
})
document.addEventListener("keydown", event => {
  const at = event.target
  const typing = at instanceof HTMLElement && at.matches("input, textarea, select")
  if (!on || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return
  // The letter; where the keyboard writes no Latin ones, the place of the key.
  const letter = /^[a-z]$/i.test(event.key) ? event.key : event.code.replace(/^Key/, "")
  const button = [...document.querySelectorAll("[data-key]")].find(
    one => one.dataset.key === letter.toLowerCase())
  if (!button) return
  event.preventDefault()
  button.click()
})
