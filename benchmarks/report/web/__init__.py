"""The page of a run: one HTML file that holds its pictures, charts, style and script, made by Jinja2 from templates.

Imports tables and pictures of the report. Public: `document`.
"""
