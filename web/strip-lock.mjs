// Remove addresses from package-lock.json: versions and checksums are all that an installation needs.
import { readFileSync, writeFileSync } from "node:fs";

const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
for (const entry of Object.values(lock.packages)) for (const key of ["resolved", "funding"]) delete entry[key];
writeFileSync("package-lock.json", JSON.stringify(lock, null, 2) + "\n");
