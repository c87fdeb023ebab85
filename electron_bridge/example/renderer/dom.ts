/** The page's elements, by id. */

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found as T;
}

export const input = (id: string): HTMLInputElement => element<HTMLInputElement>(id);
export const select = (id: string): HTMLSelectElement => element<HTMLSelectElement>(id);

/** Leaves the node alone where it says so already: a screen reader reads what changes. */
export function setText(node: HTMLElement, words: string): void {
  if (node.textContent !== words) node.textContent = words;
}
