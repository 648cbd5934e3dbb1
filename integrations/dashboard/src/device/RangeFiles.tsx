/** Downloads of the range that the charts show. */

import type { PowerMeter } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useState } from "react";
import * as format from "../format";
import { endsOf, type Span } from "../live/span";
import { fileName, saveFile } from "../ui/save";
import { errorText } from "../ui/states";
import { type Content, fileText, MOST_ROWS, rowsOf } from "./range-files";

interface RangeFilesProps {
  readonly deviceId: string;
  readonly meters: readonly PowerMeter[];
  readonly span: Span;
  readonly now: number;
}

interface Said {
  readonly busy: boolean;
  readonly text: string;
  readonly bad: boolean;
}

export function RangeFiles({ deviceId, meters, span, now }: RangeFilesProps) {
  const client = usePowerClient();
  const [content, setContent] = useState<Content>("readings");
  const [said, setSaid] = useState<Said>({ busy: false, text: "", bad: false });

  async function download(kind: "csv" | "json"): Promise<void> {
    setSaid({ busy: true, text: "", bad: false });
    const ends = endsOf(span, now);
    try {
      const found = await rowsOf(client, content, meters, ends);
      // The end is not part of the span.
      const days = ends.map((end, place) => format.isoDay(end - place));
      const name = fileName(deviceId, content, ...days, kind);
      saveFile(fileText(found, kind), kind, name);
      const count = `${found.rows.length.toLocaleString("en")} rows`;
      const cut = `Saved only the first ${MOST_ROWS.toLocaleString("en")} rows. Choose a shorter range to get them all.`;
      setSaid({ busy: false, text: found.cut ? cut : `Saved ${name}: ${count}.`, bad: found.cut });
    } catch (error) {
      setSaid({ busy: false, text: errorText(error), bad: true });
    }
  }

  return (
    <section className="card range-files" aria-labelledby="range-files">
      <h3 id="range-files">This range as a file</h3>
      <label htmlFor="range-content" className="hidden">
        Content
      </label>
      <select
        id="range-content"
        value={content}
        onChange={(event) => setContent(event.target.value as Content)}
      >
        <option value="readings">Readings</option>
        <option value="hours">Energy and statistics by hour</option>
      </select>
      <button type="button" className="button" disabled={said.busy} onClick={() => download("csv")}>
        CSV
      </button>
      <button
        type="button"
        className="button"
        disabled={said.busy}
        onClick={() => download("json")}
      >
        JSON
      </button>
      <p className={said.bad ? "problem" : "muted"} role="status">
        {said.text}
      </p>
    </section>
  );
}
