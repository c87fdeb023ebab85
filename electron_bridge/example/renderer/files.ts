/** From drops, dialogs and the clipboard to image files; folders are walked through. */

export interface Named {
  readonly name: string;
  readonly file: File;
}

const KNOWN = /\.(png|jpe?g|webp)$/i;

/** Those that are PNG, JPEG or WebP, and how many others there were. */
export function images(files: Iterable<File>): { named: Named[]; skipped: number } {
  const all = [...files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
  const named = all.filter(
    ({ name, file }) => KNOWN.test(name) || /^image\/(png|jpeg|webp)$/.test(file.type),
  );
  const collator = new Intl.Collator(undefined, { numeric: true });
  named.sort((a, b) => collator.compare(a.name, b.name));
  return { named, skipped: all.length - named.length };
}

/** Everything that was dropped, folders with all that is in them. */
export async function dropped(transfer: DataTransfer): Promise<File[]> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return [...transfer.files];
  const found: File[] = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found;
}

async function walk(entry: FileSystemEntry, found: File[]): Promise<void> {
  if (entry.isFile) {
    found.push(
      await new Promise<File>((resolve, reject) =>
        (entry as FileSystemFileEntry).file(resolve, reject),
      ),
    );
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject),
    );
    if (some.length === 0) return;
    for (const inside of some) await walk(inside, found);
  }
}
