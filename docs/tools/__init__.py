"""What turns `docs/` into the site: tables from the code, MathML, the notebook, API pages."""
