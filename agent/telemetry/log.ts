/** The root logger; everyone else gets a child with its component. JSON lines on stderr, so that stdout stays for output. */
import { type Logger, pino } from 'pino';

export const createLog = (level: string): Logger =>
  pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination({ fd: 2, sync: true }),
  );
