"""Every rule about folds, leases and trials. Optuna, HTTP and statistics may not live here.

Where to look: `claims` answers a worker's claim; `reports` records its result, which `results` checks and
scores and `counting` counts; `leases` rejects calls on leases that are no longer current; `failures` ends
leases that failed or expired, and `failed_folds` trials with them; `trials` adds and ends trials; `workers`
drains workers.

Rules that hold in all of them:

- **Transactions.** Each function runs inside its caller's transaction and commits nothing.
- **Locks.** A trial's row is locked before its folds and leases are read or changed, and a study's row only
  after that, never the other way round. While a transaction holds the trial's lock, the trial's folds do not
  change. To cancel several trials, use one transaction for each. A claim can end several by reuse: it takes
  only trials that nobody has locked, and after the first end only trials of the same study. A deletion locks
  all trials of its study in order of their ids.
- **Terms.** A lease is fenced by its term, never by the clock: its result counts until the same fold is granted
  again, even if the lease has expired. After that, `report` and `fail` with the old term raise
  `LeaseSuperseded`, `heartbeat` answers `abandon`, and `release` does nothing.
- **Time.** All times are the database's.
- **Reuse.** If the study reuses folds, a fold that a trial with equal parameters has run is not leased: its
  result is counted again. Another trial's results are read without its lock, because they never change.
"""
