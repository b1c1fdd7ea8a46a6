#include "eval/xlsx.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "base/buf.h"

#define SHEET_BYTES_MAX  ((size_t)1 << 30)
#define PARTS            5
#define LOCAL_BYTES      30
#define DIRECTORY_BYTES  46
#define MAIN_NAMESPACE   "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
#define RELATION         "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
#define PACKAGE          "http://schemas.openxmlformats.org/package/2006/"
#define XML              "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n"

static const char CONTENT_TYPES[] =
    XML "<Types xmlns=\"" PACKAGE "content-types\">"
    "<Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>"
    "<Default Extension=\"xml\" ContentType=\"application/xml\"/>"
    "<Override PartName=\"/xl/workbook.xml\" "
    "ContentType=\"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml\"/>"
    "<Override PartName=\"/xl/worksheets/sheet1.xml\" "
    "ContentType=\"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml\"/></Types>";
static const char ROOT_RELATIONS[] =
    XML "<Relationships xmlns=\"" PACKAGE "relationships\"><Relationship Id=\"rId1\" Type=\"" RELATION
    "/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>";
static const char WORKBOOK[] =
    XML "<workbook xmlns=\"" MAIN_NAMESPACE "\" xmlns:r=\"" RELATION "\"><sheets>"
    "<sheet name=\"Sheet1\" sheetId=\"1\" r:id=\"rId1\"/></sheets></workbook>";
static const char WORKBOOK_RELATIONS[] =
    XML "<Relationships xmlns=\"" PACKAGE "relationships\"><Relationship Id=\"rId1\" Type=\"" RELATION
    "/worksheet\" Target=\"worksheets/sheet1.xml\"/></Relationships>";

/* ---- the sheet ----------------------------------------------------------------------------------- */

/* XML 1.0 has no place for most control characters. */
static status append_escaped(buf *out, const char *text) {
    status st = STATUS_OK;
    for (const char *c = text; *c && st == STATUS_OK; c++) {
        if (*c == '&') st = buf_append_text(out, "&amp;");
        else if (*c == '<') st = buf_append_text(out, "&lt;");
        else if (*c == '>') st = buf_append_text(out, "&gt;");
        else if (*c == '\r') st = buf_append_text(out, "&#13;");
        else if ((unsigned char)*c >= ' ' || *c == '\n' || *c == '\t') st = buf_append(out, c, 1);
    }
    return st;
}

/* Those that a spreadsheet's doubles keep exactly. */
static bool is_whole_number(const char *text) {
    size_t n = strlen(text);
    return n > 0 && n <= 15 && strspn(text, "0123456789") == n && (n == 1 || text[0] != '0');
}

static status append_cell(buf *out, const char *text) {
    if (!text) return buf_append_text(out, "<c/>");
    if (is_whole_number(text)) {
        char cell[64];
        (void)snprintf(cell, sizeof cell, "<c><v>%s</v></c>", text);
        return buf_append_text(out, cell);
    }
    status st = buf_append_text(out, "<c t=\"inlineStr\"><is><t xml:space=\"preserve\">");
    if (st == STATUS_OK) st = append_escaped(out, text);
    return st == STATUS_OK ? buf_append_text(out, "</t></is></c>") : st;
}

static status append_sheet(buf *out, const json_t *columns, const json_t *rows) {
    size_t i, k;
    json_t *row, *column;
    status st = buf_append_text(out, XML "<worksheet xmlns=\"" MAIN_NAMESPACE "\"><sheetData><row>");
    json_array_foreach(columns, k, column) if (st == STATUS_OK) st = append_cell(out, json_string_value(column));
    if (st == STATUS_OK) st = buf_append_text(out, "</row>");
    json_array_foreach(rows, i, row) {
        if (st == STATUS_OK) st = buf_append_text(out, "<row>");
        json_array_foreach(columns, k, column) {
            const char *text = json_string_value(json_object_get(row, json_string_value(column)));
            if (st == STATUS_OK) st = append_cell(out, text);
        }
        if (st == STATUS_OK) st = buf_append_text(out, "</row>");
    }
    return st == STATUS_OK ? buf_append_text(out, "</sheetData></worksheet>") : st;
}

/* ---- the container ------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    const void *data;
    size_t n_bytes;
    uint32_t crc, offset;
} part;

static unsigned char *put16(unsigned char *to, uint32_t v) {
    to[0] = (unsigned char)v, to[1] = (unsigned char)(v >> 8);
    return to + 2;
}
static unsigned char *put32(unsigned char *to, uint32_t v) { return put16(put16(to, v & 0xffff), v >> 16); }

/* What the local header and the directory have in common: version to size of the extra field. */
static unsigned char *put_common(unsigned char *to, const part *p) {
    to = put16(to, 20);     /* version 2.0 */
    to = put16(to, 0x0800); /* names are UTF-8 */
    to = put16(to, 0);      /* stored */
    to = put16(to, 0);      /* midnight */
    to = put16(to, 0x21);   /* of 1 January 1980 */
    to = put32(to, p->crc);
    to = put32(to, (uint32_t)p->n_bytes);
    to = put32(to, (uint32_t)p->n_bytes);
    to = put16(to, (uint32_t)strlen(p->name));
    return put16(to, 0);
}

static bool write_bytes(FILE *f, const void *data, size_t n) { return fwrite(data, 1, n, f) == n; }

static bool write_part(FILE *f, part *p, uint32_t *at) {
    unsigned char header[LOCAL_BYTES];
    p->crc = (uint32_t)crc32_z(crc32_z(0, NULL, 0), p->data, p->n_bytes);
    p->offset = *at;
    put_common(put32(header, 0x04034b50), p);
    *at += (uint32_t)(LOCAL_BYTES + strlen(p->name) + p->n_bytes);
    return write_bytes(f, header, sizeof header) && write_bytes(f, p->name, strlen(p->name)) &&
           write_bytes(f, p->data, p->n_bytes);
}

static bool write_directory(FILE *f, const part *parts, uint32_t at) {
    uint32_t n_bytes = 0;
    for (int i = 0; i < PARTS; i++) {
        unsigned char entry[DIRECTORY_BYTES] = {0};
        unsigned char *to = put16(put32(entry, 0x02014b50), 20);
        (void)put_common(to, &parts[i]);
        (void)put32(entry + 42, parts[i].offset); /* comment, disk and attributes are zero */
        if (!write_bytes(f, entry, sizeof entry) || !write_bytes(f, parts[i].name, strlen(parts[i].name))) return false;
        n_bytes += DIRECTORY_BYTES + (uint32_t)strlen(parts[i].name);
    }
    unsigned char end[22] = {0}, *to = put32(put32(end, 0x06054b50), 0);
    to = put32(put32(put16(put16(to, PARTS), PARTS), n_bytes), at);
    (void)put16(to, 0);
    return write_bytes(f, end, sizeof end);
}

status xlsx_write(const char *path, const json_t *columns, const json_t *rows, err *e) {
    buf sheet;
    buf_init(&sheet, SHEET_BYTES_MAX);
    status st = append_sheet(&sheet, columns, rows);
    if (st != STATUS_OK) {
        buf_deinit(&sheet);
        return fail(e, st, "%.300s: a table of %zu rows is too large", path, json_array_size(rows));
    }
    part parts[PARTS] = {{.name = "[Content_Types].xml", .data = CONTENT_TYPES, .n_bytes = sizeof CONTENT_TYPES - 1},
                         {.name = "_rels/.rels", .data = ROOT_RELATIONS, .n_bytes = sizeof ROOT_RELATIONS - 1},
                         {.name = "xl/workbook.xml", .data = WORKBOOK, .n_bytes = sizeof WORKBOOK - 1},
                         {.name = "xl/_rels/workbook.xml.rels", .data = WORKBOOK_RELATIONS,
                          .n_bytes = sizeof WORKBOOK_RELATIONS - 1},
                         {.name = "xl/worksheets/sheet1.xml", .data = sheet.data, .n_bytes = sheet.len_bytes}};
    FILE *f = fopen(path, "we");
    if (!f) {
        st = fail_errno(e, STATUS_IO, "%.300s", path);
    } else {
        uint32_t at = 0;
        bool ok = true;
        for (int i = 0; i < PARTS && ok; i++) ok = write_part(f, &parts[i], &at);
        ok = ok && write_directory(f, parts, at);
        if (fclose(f) != 0 || !ok) st = fail(e, STATUS_IO, "%.300s: cannot be written", path);
    }
    buf_deinit(&sheet);
    return st;
}
