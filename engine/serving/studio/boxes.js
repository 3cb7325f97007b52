// The people of a picture as boxes: dragged, drawn, named; by mouse, touch and keyboard. props.value: [{name, box}],
// fractions of the picture; props.src: the picture.
const MOST = 8, STEP = 0.02, LEAST = 0.04;
const host = document.createElement("div");
host.className = "box-editor";
host.setAttribute("role", "group");
host.setAttribute("aria-labelledby", "people-label");
host.innerHTML = `<p class="label" id="people-label">People in the picture</p>
<p class="note" id="people-help">Drag a box over each person, from left to right. Keys: arrows move a box, Shift and
arrows change its size, Delete removes it.</p>
<div class="stage" hidden><img alt="The picture, with a box for each person" draggable="false"></div>
<ul class="names"></ul>
<button type="button" class="add">Add a person</button>`;
const find = (query) => host.querySelector(query);
const stage = find(".stage"), image = find("img"), names = find(".names"), add = find(".add");
const COLOURS = ["#0b57d0", "#b3261e", "#146c2e", "#7b3fa0", "#8a4b00", "#00626e", "#a0005f", "#4a4a55"];
let people = [];

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const round = (box) => box.map((value) => Math.round(value * 1e4) / 1e4);
const order = () => people.sort((a, b) => a.box[0] + a.box[2] - b.box[0] - b.box[2]);
const equal = (count) => Array.from({ length: count }, (_, i) => round([i / count, 0, (i + 1) / count, 1]));
const isEqual = () => JSON.stringify(people.map(({ box }) => box)) === JSON.stringify(equal(people.length));

function tell() {
  order();
  props.value = people.map(({ name, box }) => ({ name, box: round(box) }));
  trigger("change");
}

function place(element, box) {
  element.style.left = `${100 * box[0]}%`;
  element.style.top = `${100 * box[1]}%`;
  element.style.width = `${100 * (box[2] - box[0])}%`;
  element.style.height = `${100 * (box[3] - box[1])}%`;
}

function moved(box, dx, dy) {
  const x = clamp(dx, -box[0], 1 - box[2]), y = clamp(dy, -box[1], 1 - box[3]);
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
}

function sized(box, dx, dy) {
  return [box[0], box[1], clamp(box[2] + dx, box[0] + LEAST, 1), clamp(box[3] + dy, box[1] + LEAST, 1)];
}

function drag(event, person, element, change) {
  event.preventDefault();
  event.stopPropagation();
  const bounds = stage.getBoundingClientRect(), start = person.box, x = event.clientX, y = event.clientY;
  const move = (to) => {
    person.box = change(start, (to.clientX - x) / bounds.width, (to.clientY - y) / bounds.height);
    place(element, person.box);
  };
  const end = () => {
    removeEventListener("pointermove", move);
    draw();
    tell();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end, { once: true });
  addEventListener("pointercancel", end, { once: true });
}

function remove(person) {
  if (people.length < 2) return;
  const parts = isEqual();
  people = people.filter((one) => one !== person);
  if (parts) equal(people.length).forEach((box, index) => { people[index].box = box; });
  draw();
  tell();
}

function keys(event, person, element) {
  if (event.target !== element) return;
  const by = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
  if (event.key === "Delete" || event.key === "Backspace") { event.preventDefault(); remove(person); return; }
  if (!by) return;
  event.preventDefault();
  person.box = (event.shiftKey ? sized : moved)(person.box, ...by);
  place(element, person.box);
  describe(element, person);
  clearTimeout(person.timer);
  person.timer = setTimeout(tell, 300);
}

function describe(element, person) {
  const [x0, y0, x1, y1] = person.box.map((value) => Math.round(100 * value));
  element.setAttribute("aria-label", `${person.name}: from ${x0} to ${x1} % of the width, ${y0} to ${y1} % of the height`);
}

function draw() {
  order();
  stage.querySelectorAll(".box").forEach((box) => box.remove());
  names.replaceChildren();
  people.forEach((person, index) => {
    const element = document.createElement("div");
    element.className = "box";
    element.tabIndex = 0;
    element.setAttribute("role", "group");
    element.style.setProperty("--colour", COLOURS[index % COLOURS.length]);
    element.innerHTML = "<span></span><i></i>";
    element.firstChild.textContent = person.name;
    place(element, person.box);
    describe(element, person);
    element.addEventListener("pointerdown", (event) => { element.focus(); drag(event, person, element, moved); });
    element.lastChild.addEventListener("pointerdown", (event) => drag(event, person, element, sized));
    element.addEventListener("keydown", (event) => keys(event, person, element));
    stage.append(element);
    const item = document.createElement("li"), input = document.createElement("input");
    input.value = person.name;
    input.maxLength = 40;
    input.setAttribute("aria-label", `Name of person ${index + 1}`);
    input.addEventListener("change", () => {
      person.name = input.value.trim() || `Person ${index + 1}`;
      draw();
      tell();
    });
    item.append(input);
    if (people.length > 1) {
      const gone = document.createElement("button");
      gone.type = "button";
      gone.textContent = "Remove";
      gone.setAttribute("aria-label", `Remove ${person.name}`);
      gone.addEventListener("click", () => remove(person));
      item.append(gone);
    }
    names.append(item);
  });
  add.disabled = people.length >= MOST;
}

add.addEventListener("click", () => {
  const parts = isEqual();
  const number = Array.from({ length: MOST }, (_, i) => i + 1).find((one) => !people.some(({ name }) => name === `Person ${one}`));
  people.push({ name: `Person ${number}`, box: [0.3, 0.1, 0.7, 0.9] });
  if (parts) equal(people.length).forEach((box, index) => { people[index].box = box; });
  draw();
  tell();
});

// A box is drawn where the picture is free: it replaces the equal parts of one person, or is another person.
stage.addEventListener("pointerdown", (event) => {
  if (event.target !== image && event.target !== stage) return;
  if (people.length >= MOST) return;
  const bounds = stage.getBoundingClientRect();
  const x = (event.clientX - bounds.left) / bounds.width, y = (event.clientY - bounds.top) / bounds.height;
  const person = { name: `Person ${people.length + 1}`, box: [x, y, Math.min(1, x + LEAST), Math.min(1, y + LEAST)] };
  people.push(person);
  draw();
  const element = [...stage.querySelectorAll(".box")][people.indexOf(person)];
  drag(event, person, element, sized);
});

function show() {
  if (!element.contains(host)) element.querySelector(".boxes").append(host);
  const given = Array.isArray(props.value) ? props.value : [];
  if (JSON.stringify(given) !== JSON.stringify(people.map(({ name, box }) => ({ name, box: round(box) })))) {
    people = given.map(({ name, box }) => ({ name, box: [...box] }));
    draw();
  }
  stage.hidden = !props.src;
  find("#people-help").hidden = !props.src;
  if (props.src && image.src !== props.src) image.src = props.src;
}
watch(["value", "src"], show);
show();
