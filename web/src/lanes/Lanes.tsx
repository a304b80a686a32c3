import {
  type KeyboardEvent,
  useCallback,
  useEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { hover, pinned, point } from "../state/focus";
import { chooseBackground, departed, probes, selection, slotOf, UNDERLINES } from "../state/probes";
import { soughtLane } from "../state/lanes";
import { theme } from "../state/theme";
import type { Trace } from "../trace/trace";
import { Board, STRIP_HEIGHT } from "./board";
import { Gone } from "./Gone";
import { featureLanes, type Lane, matching, probeLanes } from "./lane";
import { LanesHead } from "./LanesHead";
import { inOrder } from "./order";
import { LaneRow } from "./LaneRow";
import { useStripPointer } from "./use-strip-pointer";

/** Height of a lane with its name, in pixels. */
const ROW = STRIP_HEIGHT + 28;
/** Rows beside those in the window: they are there when one scrolls or tabs on. */
const OVERSCAN = 12;
/** First rectangle of the list, before it is measured. */
const UNMEASURED = { width: 400, height: 400 };

/** A strip for each probe and SAE feature of a request, loudest first. Null: of the engine's probes, without scores. */
export function Lanes({ trace }: { trace: Trace | null }) {
  const [board] = useState(() => new Board());
  const sought = useCell(soughtLane);
  const chosen = useCell(selection);
  const all = useLanes(board, trace);
  const order = useCell(board.order);
  const lanes = useMemo(() => inOrder(matching(all, sought), order), [all, sought, order]);
  const scroller = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLUListElement>(null);
  const pinCursor = useRef<HTMLElement>(null);
  const hoverCursor = useRef<HTMLElement>(null);
  const brush = useRef<HTMLElement>(null);
  useFollowing(board, list, scroller, [pinCursor, hoverCursor]);
  const pointer = useStripPointer(board, trace, list, brush);

  // eslint-disable-next-line react-hooks/incompatible-library -- its functions are called here and passed nowhere
  const rows = useVirtualizer({
    count: lanes.length,
    getScrollElement: () => scroller.current,
    getItemKey: (index) => lanes[index]?.key ?? index,
    estimateSize: () => ROW,
    overscan: OVERSCAN,
    initialRect: UNMEASURED,
  });
  const full = chosen.underlines.filter((id) => id !== null).length === UNDERLINES;

  return (
    <section className="lanes" aria-labelledby="lanes-title">
      <LanesHead board={board} trace={trace} count={all.length} sought={sought} />
      <Gone />
      {all.length === 0 && <p className="muted">No probes yet. They appear when the engine is up.</p>}
      {all.length > 0 && lanes.length === 0 && <p className="muted">No lane has this name.</p>}
      {/* eslint-disable-next-line jsx-a11y/no-static-element-interactions -- keys of the controls in it */}
      <div
        ref={scroller}
        className="lanes-scroll"
        data-testid="lanes"
        onKeyDown={(event) => onDigit(event, lanes)}
        onPointerEnter={() => board.hold(true)}
        onPointerLeave={() => {
          board.hold(false);
          if (trace) point(trace, null);
        }}
        onFocus={() => board.hold(true)}
        onBlur={() => board.hold(false)}
      >
        <ul
          ref={list}
          className="lanes-list"
          aria-label={`${formatCount(lanes.length)} lanes`}
          style={{ height: rows.getTotalSize() }}
          {...pointer}
        >
          {rows.getVirtualItems().map(({ key, index, start }) => {
            const lane = lanes[index];
            if (!lane) return null;
            const slot = lane.kind === "probe" ? slotOf(chosen, lane.id) : null;
            const place = { index, count: lanes.length, top: start };
            return <LaneRow key={key} board={board} lane={lane} slot={slot} full={full} {...place} />;
          })}
          <li className="lanes-cursors" aria-hidden="true">
            <i ref={pinCursor} className="lane-cursor" data-pinned hidden />
            <i ref={hoverCursor} className="lane-cursor" hidden />
            <i ref={brush} className="lane-brush" hidden />
          </li>
        </ul>
      </div>
    </section>
  );
}

/** The lanes of a request, in the order in which engine and request name them. */
function useLanes(board: Board, trace: Trace | null): readonly Lane[] {
  const known = useCell(probes);
  const left = useCell(departed);
  const columns = useColumns(trace);
  const features = useCell(board.featureCount);
  useEffect(() => {
    board.show(trace);
    return () => board.show(null);
  }, [board, trace]);
  const lanes = useMemo(
    () => [...probeLanes(trace, known, left), ...featureLanes(features > 0 ? board.features : null)],
    // eslint-disable-next-line react-hooks/exhaustive-deps -- a trace gains columns but stays the same object
    [board, trace, known, left, columns, features],
  );
  useEffect(() => board.setLanes(lanes), [board, lanes]);
  return lanes;
}

/** Changes when the trace is another one, or gets other columns. */
function useColumns(trace: Trace | null): string {
  const subscribe = useCallback(
    (listener: () => void) => trace?.subscribe(listener) ?? (() => undefined),
    [trace],
  );
  return useSyncExternalStore(subscribe, () => `${trace?.key} ${trace?.columnsVersion}`);
}

type Ref<T> = { readonly current: T | null };

/** Draws anew when size, theme, selection, or what is pointed at changes. */
function useFollowing(
  board: Board,
  list: Ref<HTMLElement>,
  scroller: Ref<HTMLElement>,
  cursors: readonly Ref<HTMLElement>[],
): void {
  const [pinCursor, hoverCursor] = cursors;
  useEffect(() => {
    const [box, host] = [list.current, scroller.current];
    if (!box || !host || !pinCursor?.current || !hoverCursor?.current) return;
    board.setHost(host, [pinCursor.current, hoverCursor.current]);
    const measure = () => {
      board.setWidth(box.clientWidth);
      board.setWindow(host.scrollTop, host.scrollTop + host.clientHeight);
    };
    const sizes = new ResizeObserver(measure);
    sizes.observe(box);
    sizes.observe(host);
    host.addEventListener("scroll", measure, { passive: true });
    measure();
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", board.recolor);
    const stops = [
      hover.subscribe(board.lead),
      pinned.subscribe(board.lead),
      theme.subscribe(board.recolor),
      selection.subscribe(board.recolor),
    ];
    return () => {
      sizes.disconnect();
      host.removeEventListener("scroll", measure);
      scheme.removeEventListener("change", board.recolor);
      for (const stop of stops) stop();
      board.setHost(null, []);
    };
  }, [board, list, scroller, pinCursor, hoverCursor]);
}

/** In the list, a digit chooses the lane of that number for the background. */
function onDigit(event: KeyboardEvent, lanes: readonly Lane[]): void {
  if (!/^[1-9]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  const lane = lanes[Number(event.key) - 1];
  if (lane?.kind !== "probe") return;
  chooseBackground(lane.id);
  event.preventDefault();
}
