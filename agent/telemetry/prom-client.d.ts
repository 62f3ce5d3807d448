/** The parts of prom-client one by one: all of it together loads OpenTelemetry's API, 8 MB that nobody here uses. */
// biome-ignore-all lint/style/noDefaultExport: these modules are CommonJS, what they export is the default.
declare module 'prom-client/lib/registry.js' {
  export { Registry as default } from 'prom-client';
}
declare module 'prom-client/lib/histogram.js' {
  export { Histogram as default } from 'prom-client';
}
declare module 'prom-client/lib/counter.js' {
  export { Counter as default } from 'prom-client';
}
declare module 'prom-client/lib/gauge.js' {
  export { Gauge as default } from 'prom-client';
}
