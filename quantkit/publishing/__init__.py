"""Finished builds as repositories on the Hugging Face Hub: layout, card, upload, verification."""
