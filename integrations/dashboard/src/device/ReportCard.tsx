/** The service's report, to download. */

import { usePowerClient } from "@blackroad/power-client/react";
import { useState } from "react";
import { fileName, saveFile } from "../ui/save";
import { errorText } from "../ui/states";
import { reportCsv } from "./report-csv";

const PERIODS = [1, 7, 30, 90, 365];

export function ReportCard({ deviceId }: { deviceId: string }) {
  const client = usePowerClient();
  const [days, setDays] = useState(7);
  const [state, setState] = useState<{ busy: boolean; text: string; bad: boolean }>({
    busy: false,
    text: "",
    bad: false,
  });

  async function download(kind: "json" | "csv"): Promise<void> {
    setState({ busy: true, text: "", bad: false });
    try {
      const report = await client.getReport(deviceId, { days });
      const name = fileName(deviceId, report.generated_at.slice(0, 10), `${days}d`, kind);
      saveFile(
        kind === "json" ? `${JSON.stringify(report, null, 2)}\n` : reportCsv(report),
        kind,
        name,
      );
      setState({ busy: false, text: `Saved ${name}.`, bad: false });
    } catch (error) {
      setState({ busy: false, text: errorText(error), bad: true });
    }
  }

  return (
    <section className="card" aria-labelledby="report">
      <h2 id="report">Report</h2>
      <div className="row">
        <label htmlFor="report-days">Period</label>
        <select
          id="report-days"
          value={days}
          onChange={(event) => setDays(Number(event.target.value))}
        >
          {PERIODS.map((period) => (
            <option key={period} value={period}>
              {period === 1 ? "1 day" : `${period} days`}
            </option>
          ))}
        </select>
        <button
          type="button"
          className="button"
          disabled={state.busy}
          onClick={() => download("json")}
        >
          Download JSON
        </button>
        <button
          type="button"
          className="button"
          disabled={state.busy}
          onClick={() => download("csv")}
        >
          Download CSV
        </button>
      </div>
      <p className={state.bad ? "problem" : "muted"} role="status">
        {state.text || "JSON is the full report; CSV has one line per meter."}
      </p>
    </section>
  );
}
