"""The page that draws digits in a browser: its build, and the export of the model that it runs."""
