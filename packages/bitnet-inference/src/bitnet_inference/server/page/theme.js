// Runs before anything is painted, so that no light flashes in the dark.
"use strict";
try {
  const theme = localStorage.getItem("bitnet.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Where nothing is kept, the system's choice holds.
}
