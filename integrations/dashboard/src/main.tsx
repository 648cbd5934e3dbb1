import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import "uplot/dist/uPlot.min.css";
import { App } from "./App";
import "./style/theme.css";
import "./style/base.css";
import "./style/frame.css";
import "./style/fleet.css";
import "./style/device.css";
import "./style/charts.css";
import "./style/print.css";

createRoot(document.getElementById("root") as HTMLElement).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
