"""MLflow, the ledger's mirror."""
