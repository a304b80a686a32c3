import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import { installRamps } from "./color/sheet";
import { followTheme } from "./state/theme";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/heatmap.css";
import "./styles/chat.css";
import "./styles/lanes.css";
import "./styles/reader.css";
import "./styles/panel.css";

followTheme();
installRamps();

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <App />
    </StrictMode>,
  );
}
