// A portrait's light: key, fill and rim from three sides, sky above and ground below. Colours are linear.
uniform vec3 camera;
uniform vec3 key_direction;
uniform vec3 fill_direction;
uniform vec3 rim_direction;
uniform vec3 key_colour;
uniform vec3 fill_colour;
uniform vec3 rim_colour;
uniform vec3 sky_colour;
uniform vec3 ground_colour;
uniform float exposure;
uniform sampler2DShadow shadow_map;

const float PI = 3.1416;

// How much of the key light reaches a place in the light's own projection: three taps of the shadow map.
float key_visible(vec4 in_light, float bias) {
    const float SPREAD = 1.4 / 1024.0;
    vec3 at = in_light.xyz / in_light.w * 0.5 + 0.5;
    at.z -= bias;
    float lit = texture(shadow_map, at + vec3(vec2(-1.3, -0.8) * SPREAD, 0.0));
    lit += texture(shadow_map, at + vec3(vec2(1.3, -0.8) * SPREAD, 0.0));
    lit += texture(shadow_map, at + vec3(vec2(0.0, 1.5) * SPREAD, 0.0));
    return lit * 0.3333;
}

vec3 ambient(vec3 normal) {
    return mix(ground_colour, sky_colour, normal.y * 0.5 + 0.5);
}

// Narkowicz's fit of the ACES film curve, a little less saturated.
vec3 tone_mapped(vec3 colour) {
    colour *= exposure;
    vec3 film = colour * (2.51 * colour + 0.03) / (colour * (2.43 * colour + 0.59) + 0.14);
    float grey = dot(film, vec3(0.3, 0.59, 0.11));
    return clamp(mix(vec3(grey), film, 0.88), 0.0, 1.0);
}

// Cook and Torrance's highlight with the GGX distribution, times the cosine.
float highlight(vec3 normal, vec3 view, vec3 light, float roughness, float reflectance) {
    vec3 halfway = normalize(view + light);
    float nh = max(dot(normal, halfway), 0.0);
    float nl = max(dot(normal, light), 0.0);
    float nv = max(dot(normal, view), 0.05);
    float lh = max(dot(light, halfway), 0.0);
    float a2 = pow(roughness, 4.0);
    float d = nh * nh * (a2 - 1.0) + 1.0;
    float distribution = a2 / (PI * d * d);
    float k = (roughness + 1.0) * (roughness + 1.0) / 8.0;
    float geometry = 1.0 / ((nl * (1.0 - k) + k) * (nv * (1.0 - k) + k));
    float fresnel = reflectance + (1.0 - reflectance) * pow(1.0 - lh, 5.0);
    return distribution * geometry * fresnel * 0.25 * nl;
}
