// What was dropped or chosen, sorted into studies: each NIfTI and each zip is one; all other files of a folder that was
// dropped are one, and so are all other files that were dropped loose.

export interface Study {
  title: string; // shown in this tab only, never sent: a file name may hold a patient's name
  files: File[];
}

const ARCHIVE = /\.(nii|nii\.gz|zip)$/i;

export async function droppedStudies(items: DataTransferItemList): Promise<Study[]> {
  // The list is emptied at the first await, so all entries are taken before.
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const loose: File[] = [];
  const studies: Study[] = [];
  for (const entry of entries) {
    if (entry.isDirectory) studies.push(...sorted(await filesBelow(entry), entry.name));
    else loose.push(...(await filesBelow(entry)));
  }
  return [...studies, ...sorted(loose)];
}

/** From file inputs; a chosen folder is known by the path of its files. */
export function chosenStudies(files: Iterable<File>): Study[] {
  const folders = new Map<string, File[]>();
  for (const file of files) {
    const folder = file.webkitRelativePath.split("/", 1)[0] ?? "";
    folders.set(folder, [...(folders.get(folder) ?? []), file]);
  }
  return [...folders].flatMap(([folder, inside]) => sorted(inside, folder));
}

function sorted(files: File[], folder = ""): Study[] {
  const visible = files.filter((file) => !file.name.startsWith(".") && file.size > 0);
  const archives = visible.filter((file) => ARCHIVE.test(file.name));
  const slices = visible.filter((file) => !ARCHIVE.test(file.name));
  const studies = archives.map((file) => ({ title: file.name, files: [file] }));
  if (slices.length) studies.push({ title: folder || (slices.length === 1 ? slices[0]!.name : "Files"), files: slices });
  return studies;
}

async function filesBelow(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) {
    return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const files: File[] = [];
  for (;;) {
    const batch = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return files; // a folder is told in batches of a hundred
    for (const child of batch) files.push(...(await filesBelow(child)));
  }
}
