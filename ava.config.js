/** `ava` runs everything; scripts/test.ts gives it the folders of one group at a time. */
export default {
  extensions: ['ts'],
  files: ['{agent,cni,deploy,lab,scripts,bench}/**/*.test.ts', 'test/**/*.test.ts'],
  // Tests of kernel code change the network namespace of a thread: each file gets a process of its own.
  workerThreads: false,
  concurrency: 2,
  // Time without any test finishing. A bound against hanging, never a measurement.
  timeout: '60s',
};
