import { type Chance, entropyAtLeast } from "../trace/chances";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";

/** Probability, entropy and alternatives of each token of a unit; nothing where the engine has not said them. */
export function ChanceLines({ trace, from, to }: { trace: Trace; from: number; to: number }) {
  const positions = Array.from({ length: to - from }, (_, i) => from + i);
  const known = positions.flatMap((position) => {
    const chance = trace.chanceAt(position);
    return chance ? [{ position, chance }] : [];
  });
  if (known.length === 0) return null;
  return (
    <ul className="chances numbers" data-testid="chances">
      {known.map(({ position, chance }) => (
        <Line
          key={position}
          chance={chance}
          text={trace.textAt(position)}
          place={positions.length > 1 ? position : null}
        />
      ))}
    </ul>
  );
}

/** Alternatives that are less likely are not worth a place: 1 in 10,000. */
const LEAST = Math.log(0.0001);

function Line({ chance, text, place }: { chance: Chance; text: string; place: number | null }) {
  const entropy = entropyAtLeast(chance);
  const others = chance.likeliest.filter(({ token, logprob }) => token !== text && logprob >= LEAST);
  return (
    <li>
      {place !== null && <span className="muted">{place}: </span>}
      <span title={`log-probability ${chance.logprob}`}>p {formatChance(chance.logprob)}</span>
      {entropy !== null && (
        <span
          className="muted"
          title="Of the model’s next token, in nats; a lower bound: only the likeliest tokens are known"
        >
          {" · entropy "}≥ {entropy.toFixed(2)}
        </span>
      )}
      {others.length > 0 && (
        <span className="alternatives" data-testid="alternatives">
          <span className="muted">instead of it: </span>
          {others.map(({ token, logprob }, i) => (
            <span key={`${i} ${token}`}>
              <q>{visible(token)}</q> {formatChance(logprob)}
            </span>
          ))}
        </span>
      )}
    </li>
  );
}

/** Formats a probability with two digits that count, and never as 0 or 1 when it is not. */
function formatChance(logprob: number): string {
  const p = Math.exp(logprob);
  if (p > 0.99 && logprob < 0) return "> .99";
  if (p < 0.0001) return "< .0001";
  return (p < 0.01 ? p.toFixed(4) : p.toFixed(2)).replace(/^0/, "");
}
