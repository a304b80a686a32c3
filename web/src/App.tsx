import { useEffect } from "react";
import { Announcer } from "./components/Announcer";
import { Composer } from "./components/Composer";
import { Conversation } from "./components/Conversation";
import { EngineNotice } from "./components/EngineNotice";
import { Header } from "./components/Header";
import { Panel } from "./components/Panel";
import { RefusedPanel } from "./components/RefusedPanel";
import { TabTitle } from "./components/TabTitle";
import { TokenPopover } from "./components/TokenPopover";
import { Troubles } from "./components/Troubles";
import { WatchView } from "./components/WatchView";
import { useCell } from "./lib/cell";
import { followEngine } from "./state/engine";
import { active } from "./state/focus";
import { followRanges } from "./state/ranges";
import { followSession } from "./state/session";
import { watched } from "./state/watch";

export function App() {
  const other = useCell(watched);
  const trace = useCell(active);
  useEffect(() => followEngine(), []);
  useEffect(() => followRanges(), []);
  useEffect(() => followSession(), []);
  return (
    <div className="page">
      <TabTitle />
      <Header />
      <main className="text">
        <EngineNotice />
        <Troubles />
        {other ? <WatchView key={other.id} watched={other} /> : <Conversation />}
        {!other && <Composer />}
        <TokenPopover />
      </main>
      <Panel />
      <RefusedPanel />
      {trace && <Announcer trace={trace} />}
    </div>
  );
}
