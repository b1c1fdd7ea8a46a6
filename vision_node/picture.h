/* One image on its way through the node, once whoever asked for it: its pixels, then its features.
 *
 *     FREE -> READING -> READY -> ENCODING -> STORING -> FREE
 *
 * Reading and storing are pieces of work of a crew; between the two the picture is the service's. A picture that was
 * found in the cache, cannot be decoded or is not wanted any more is FREE again at once. */
#ifndef VISION_NODE_PICTURE_H
#define VISION_NODE_PICTURE_H

#include "vision_node/vision_service.h"
#include "vision_node/vision_task.h"

typedef enum { PICTURE_FREE, PICTURE_READING, PICTURE_READY, PICTURE_ENCODING, PICTURE_STORING } picture_stage;

/* What all pictures of a node share. */
typedef struct {
    vision_service_parts parts;
    size_t pixel_bytes, feature_bytes, blob_bytes; /* of one picture; a blob has its header */
} picture_kit;

struct picture {
    crew_work work;
    const picture_kit *kit;
    void *owner;
    picture_stage stage;
    cache_key key;
    unsigned char *pixels;   /* [size, size, 3] */
    unsigned char *features; /* kit->feature_bytes */
    /* To read: */
    task *lender; /* whose file it is */
    bytes file;
    bool applies_exif, trusts_cache, wants_features;
    /* What came of it: */
    status read;  /* and why not */
    err why;
    bool was_found; /* in the cache; its features are here if they were wanted */
    image_info info;
    uint64_t decode_us, encode_us;
    bool is_stored;
};

/* Looks into the cache unless it must not, and decodes what is not there. */
void picture_read(crew_work *work);

/* Puts the features into the cache. */
void picture_store(crew_work *work);

blob picture_features(const picture *p); /* as the cache holds them */

#endif
