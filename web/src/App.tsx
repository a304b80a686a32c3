import { useEffect } from "react";
import { Announcer } from "./page/Announcer";
import { Composer } from "./chat/Composer";
import { Conversation } from "./chat/Conversation";
import { EngineNotice } from "./page/EngineNotice";
import { Header } from "./page/Header";
import { Panel } from "./panel/Panel";
import { RefusedPanel } from "./page/RefusedPanel";
import { TabTitle } from "./page/TabTitle";
import { Troubles } from "./page/Troubles";
import { WatchView } from "./chat/WatchView";
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
      </main>
      <Panel />
      <RefusedPanel />
      {trace && <Announcer trace={trace} />}
    </div>
  );
}
