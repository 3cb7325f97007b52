"""The real code path at the published sizes on a pretended card: fake tensors, a ledger, no GPU and no weights."""
