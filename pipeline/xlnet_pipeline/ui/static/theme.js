// Sets the theme that the reader chose before the page is drawn.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* storage is blocked: the system's theme stays */ }
