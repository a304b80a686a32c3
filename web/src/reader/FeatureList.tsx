import { formatActivation } from "../lib/numbers";
import { showLane } from "../state/lanes";
import { CellState, STATE_WORDS } from "../trace/column";
import type { Trace } from "../trace/trace";

const FEATURES_SHOWN = 5;

/** The strongest SAE features of a position, each a link to its lane. */
export function FeatureList({ trace, position }: { trace: Trace; position: number }) {
  const features = trace.featuresAt(position, FEATURES_SHOWN);
  if (features.length === 0) return null;
  return (
    <>
      <p className="muted features-of">
        Strongest features{trace.sae && ` of ${trace.sae.name}, ${trace.sae.site}`}
      </p>
      <ol className="token-features numbers" aria-label="Strongest features" data-testid="features">
        {features.map(({ id, value }) => (
          <li key={id}>
            <button
              type="button"
              className="link"
              title="Show its lane"
              onClick={() => showLane(`feature #${id}`)}
            >
              #{id} {value === null ? STATE_WORDS[CellState.notFinite] : formatActivation(value)}
            </button>
          </li>
        ))}
      </ol>
    </>
  );
}
