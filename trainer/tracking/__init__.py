"""MLflow: metrics and tags, commands, the registered backbone. No other package of the trainer imports mlflow."""

import os

# No thread may hang: by default the client waits 120 seconds for an answer. The client itself never retries, whatever
# the environment says: if only the answer to a creation is lost, a retry would create a second object.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
