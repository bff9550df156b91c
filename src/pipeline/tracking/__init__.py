"""MLflow, the ledger's mirror: what a run sends, what is read back, bundles in the registry, a server for a team."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# a request may have arrived although it failed: to try again is left to those who look first
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
