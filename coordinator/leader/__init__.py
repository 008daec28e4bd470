"""The work that one coordinator does for all: it ends expired leases, adds trials and projects them to Optuna.

Where to look: `leader` starts and stops the threads; `election` holds the row that says who leads; `duties` are
done in rounds; `asking` gets parameters from the sampler; `projecting` has its own thread; `failing` keeps
an error of one study from stopping the others, and records it. Not allowed here: HTTP, Kubernetes.

Whatever a leader writes is fenced: the transaction holds the row of the leader's term until it commits, so a
coordinator that was replaced writes nothing. No request waits for any of these steps, and each can be repeated.
"""

from coordinator.leader.leader import Leader

__all__ = ["Leader"]
