// What is wrong with a page for those who do not see it, or see it badly; evaluated in the page, gives sentences.
(() => {
  const wrong = [];
  const name = (one) => `${one.tagName.toLowerCase()}${one.id ? `#${one.id}` : ""}${one.className ? `.${String(one.className).split(" ")[0]}` : ""}`;
  const seen = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && one.getClientRects().length > 0;
  const all = [...document.body.querySelectorAll("*")].filter(seen);

  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) wrong.push(`two elements have the id ${id}`);
  for (const one of document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-controls], label[for]")) {
    for (const attribute of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) {
      for (const id of (one.getAttribute(attribute) ?? "").split(" ").filter(Boolean)) {
        if (!document.getElementById(id)) wrong.push(`${name(one)} refers to ${id}, which is not there`);
      }
    }
  }
  if (document.querySelectorAll("main").length !== 1) wrong.push("there is not one main part");
  if (!document.documentElement.lang) wrong.push("the page has no language");
  for (const one of document.querySelectorAll("img")) if (!one.hasAttribute("alt")) wrong.push(`${name(one)} has no alt`);
  for (const one of all.filter((one) => one.matches("input, select, textarea"))) {
    if (!one.labels?.length && !one.getAttribute("aria-label")) wrong.push(`${name(one)} has no label`);
  }
  for (const one of all.filter((one) => one.matches("button, [role=button], a[href]"))) {
    if (!(one.getAttribute("aria-label") ?? one.textContent).trim()) wrong.push(`${name(one)} has no name`);
    const box = one.getBoundingClientRect();
    if (!one.matches("a, .link, .skip") && (box.width < 24 || box.height < 24)) wrong.push(`${name(one)} is smaller than 24 pixels: ${box.width} x ${box.height}`);
  }
  for (const one of all) {
    const { overflowX, overflowY } = getComputedStyle(one);
    const scrolls = (overflowX === "auto" && one.scrollWidth > one.clientWidth) || (overflowY === "auto" && one.scrollHeight > one.clientHeight);
    if (scrolls && one.tabIndex < 0 && !one.querySelector("button, a, input")) wrong.push(`${name(one)} scrolls, and cannot be reached by keyboard`);
  }

  const rgba = (text) => {
    const parts = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(text);
    if (!parts) throw new Error(`a colour that is not known: ${text}`);
    return [Number(parts[1]), Number(parts[2]), Number(parts[3]), Number(parts[4] ?? 1)];
  };
  const over = (front, back) => [0, 1, 2].map((at) => front[at] * front[3] + back[at] * (1 - front[3])).concat(1);
  const ground = (one) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [red, green, blue] = colour.slice(0, 3).map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [most, least] = [light(one), light(other)].sort((a, b) => b - a);
    return (most + 0.05) / (least + 0.05);
  };
  let least = 21;
  const look = (one, style, what) => {
    const back = ground(one);
    const found = contrast(over(rgba(style.color), back), back);
    least = Math.min(least, found);
    if (found < 4.5) wrong.push(`${name(one)} has ${what} of contrast ${found.toFixed(2)}`);
  };
  for (const one of all.filter((one) => !one.disabled)) {
    if ([...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) look(one, getComputedStyle(one), "text");
    if (one.matches("input[placeholder], textarea[placeholder]")) look(one, getComputedStyle(one, "::placeholder"), "a placeholder");
    if (one.matches("input:not([type=range]), textarea, dialog select") && getComputedStyle(one).borderTopWidth !== "0px") {
      const found = contrast(rgba(getComputedStyle(one).borderTopColor), ground(one.parentElement));
      if (found < 3) wrong.push(`${name(one)} has a border of contrast ${found.toFixed(2)}`);
    }
  }
  return { wrong: [...new Set(wrong)], least };
})()
